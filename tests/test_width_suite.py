"""The suite of widths (experiments/width): two tiny networks on data that ship inside scikit-learn, in seconds."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from experiments.common.store import Store
from experiments.width import data, networks, page, suite
from experiments.width.cases import CASES, Case, call
from experiments.width.networks import Recipe
from experiments.width.scores import ALONE, BEST, EM, RULE, neighbours

from sampla import LinearisedLaplace
from sampla.posterior.metrics import dyadic_log_likelihood

NOWHERE = Path()
DIGITS = Case(
    "tiny", call(data.digits, count=60), call(networks.mlp, inputs=64, hidden=(6,), outputs=10), Recipe(60, 1e-2),
    used=True,
)  # fmt: skip
DIABETES = Case(
    "line", call(data.table, name="diabetes", count=100), call(networks.mlp, inputs=10, hidden=(4,), outputs=1),
    Recipe(30), "gaussian",
)  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Two networks, fitted and scored."""
    kept = Store(tmp_path_factory.mktemp("width") / "results.json", {})
    for case in (DIGITS, DIABETES):
        suite.once(kept, case, "network", NOWHERE, NOWHERE)
    return kept


def test_scores_are_those_of_the_library_at_the_widths_that_it_found(store):
    network, split = suite.prepared(DIGITS, store.cache / "networks", NOWHERE, NOWHERE)
    row = store.rows["network/tiny"]
    loader = list(zip(split.x.split(200), split.y.split(200), strict=True))
    rule, em = (LinearisedLaplace(network, width=width, progress=False).fit(loader) for width in ("loo", "em"))
    with torch.no_grad():
        alone = torch.nn.functional.cross_entropy(network(split.test_x), split.test_y)
    found = row["scores"]["NLL"]
    assert found[ALONE] == pytest.approx(float(alone), rel=1e-4)
    for la, way in ((rule, RULE), (em, EM)):
        said = la.predict(split.test_x)
        assert found[way] == pytest.approx(-float(said.log_prob(split.test_y).double().mean()), rel=1e-4)
        joint = -float(dyadic_log_likelihood(said.sample_log_prob(split.test_y).double()).mean())
        assert row["scores"]["joint NLL"][way] == pytest.approx(
            joint, rel=0.05
        )  # other pairs: within twenty parts here
    assert found[BEST] <= min(found.values())
    assert row["scores"]["joint NLL"][BEST] <= min(row["scores"]["joint NLL"][way] for way in (ALONE, EM))
    assert row["rule"]["marginal"] == rule.report_.width["marginal"]
    assert row["seconds"] > 0


def test_a_regression_is_scored_by_densities(store):
    row = store.rows["network/line"]
    assert "ECE" not in row["scores"]
    assert row["scores"]["NLL"][BEST] <= min(row["scores"]["NLL"][way] for way in (ALONE, EM))
    _, split = suite.prepared(DIABETES, store.cache / "networks", NOWHERE, NOWHERE)
    order = neighbours(split.test_x)
    assert len(order) % 3 == 0
    assert len(set(order.tolist())) == len(order) > len(split.test_y) - 3


def test_a_trained_network_comes_back_from_the_cache_and_another_recipe_does_not(store, monkeypatch):
    again, split = suite.prepared(DIGITS, store.cache / "networks", NOWHERE, NOWHERE)
    monkeypatch.setattr(suite, "train", lambda *_: pytest.fail("trained again"))
    same, _ = suite.prepared(DIGITS, store.cache / "networks", NOWHERE, NOWHERE)
    torch.testing.assert_close(again(split.test_x), same(split.test_x), rtol=0, atol=0)
    other = replace(DIGITS, recipe=Recipe(61, 1e-2))
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        suite.prepared(other, store.cache / "networks", NOWHERE, NOWHERE)


def test_the_page_says_what_is_met_and_what_is_not(store, tmp_path):
    page.write(store, tmp_path)
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert "2 trained networks" in text
    assert "| tiny | 60, 460, 10 |" in text
    assert (tmp_path / "network.png").stat().st_size > 1000


def _row(alone, em, rule, best, joint=(5.0, 3.0, 2.0, 1.9), error=0.0, train=0.001, classifier=True):
    nll, joints = (
        dict(zip((ALONE, EM, RULE, BEST), values, strict=True)) for values in ((alone, em, rule, best), joint)
    )
    scores = {"NLL": nll, "NLL error": error, "joint NLL": joints, "joint NLL error": 0.1}
    return {"scores": scores, "train NLL": train, "classifier": classifier, "used": False} | {
        "passes": 10.5, "passes, em": 10.0, "seconds": 1.05, "seconds, em": 1.0,
    }  # fmt: skip


def test_verdicts_come_from_the_numbers():
    good = _row(1.0, 0.9, 0.72, 0.7)
    assert [met for met, _, _ in page.targets({"a": good, "b": good})] == [True] * 5
    harmed = _row(1.0, 2.0, 1.03, 1.0)
    assert not page.unharmed(harmed)
    assert page.unharmed(_row(1.0, 2.0, 1.03, 1.0, error=0.04))
    assert not page.asked_more(harmed)
    short = _row(1.0, 2.0, 0.85, 0.7, joint=(5.0, 3.0, 5.1, 1.9))
    met, _, found = zip(*page.targets({"good": good, "harmed": harmed, "short": short}), strict=True)
    assert met == (False, False, False, True, True)
    assert found[0] == "2 of 3 (not harmed +3%)"
    assert found[1] == "1 of 2 (not short -15%)"
    assert "5.100 for 5.000" in found[2]
    assert not page.targets({"short": short})[3][0]
    slow = good | {"seconds": 1.2}
    assert not page.targets({"slow": slow})[4][0]


def test_a_regression_of_negative_nll_is_compared_by_the_difference():
    worse = _row(-1.0, 0.0, -0.97, -1.1, joint=(-3.0, 0, -3.1, -3.2), classifier=False)
    assert not page.unharmed(worse)
    assert page.relative(worse, "NLL", RULE, ALONE) == pytest.approx(1.03, abs=1e-3)
    assert not page.asked_more(worse)


def test_the_suite_is_what_was_asked():
    """At least 40 networks with names of their own, at least 25 of them new to the rule, 2 to 100 classes."""
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names) >= 40
    assert sum(not case.used for case in CASES) >= 25
    assert {case.likelihood for case in CASES} == {"categorical", "bernoulli", "gaussian"}


def test_shifts_of_tables_and_of_images():
    for case, scaled in ((DIGITS, False), (DIABETES, True)):
        split = case.data(NOWHERE)
        sets = split.test_sets()
        assert all(inputs.shape == split.test_x.shape and inputs.dtype == torch.float32 for inputs in sets.values())
        assert float((sets[data.NOISE] - split.test_x).std()) > 0.05
        assert torch.equal(sets[data.TURNED], data.SCALE * split.test_x) == scaled


def test_wrong_labels_are_in_the_training_data_alone():
    right, wrong = (data.digits(NOWHERE, 400, noise=share) for share in (0.0, 0.3))
    assert float((right.y != wrong.y).double().mean()) == pytest.approx(0.3, abs=0.08)
    torch.testing.assert_close(right.test_y, wrong.test_y)
