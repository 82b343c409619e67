"""What a fit complains of: one warning of each kind, with a count, and a reason that is one."""

import re
import threading
import warnings

import pytest
import torch

import helpers
import sampla
from sampla.core.checks import ConvergenceWarning, complain, one_of_each

PROBED = sampla.EM(exact_up_to=0, max_steps=6)


def test_many_short_solves_are_one_warning():
    """Six steps of EM and the final solve, each stopped after a pass."""
    la = helpers.laplace(
        helpers.regressor(), sampla.Gaussian(structure="diagonal"), prior=sampla.Layerwise(), solver="block-cg",
        max_passes=1, em=PROBED,
    )  # fmt: skip
    with pytest.warns(sampla.ConvergenceWarning) as said:
        la.fit(helpers.regression_batches())
    said = [one for one in said if issubclass(one.category, ConvergenceWarning)]
    messages = [str(one.message) for one in said]
    solves = [text for text in messages if text.startswith("BlockCG")]
    assert len(solves) == 1
    count = re.search(r"\. This is the worst of (\d) such cases in this fit\.$", solves[0])
    assert count is not None
    assert int(count.group(1)) >= 6
    assert len([text for text in messages if "EM was asked to settle" in text]) <= 1
    assert len(messages) <= 2
    assert all(one.filename == __file__ for one in said), "it names the line that called fit"


OPEN = [
    # the network, what is asked of EM, and what must be said to be open
    (
        "classes",
        {"max_steps": 1},
        r"after 1 steps the hyperparameters still change by [\d.]+% a step: raise EM\(max_st",
    ),
    ("numbers", {"max_rows": 16}, r"Krylov space of \d+ vectors leaves the hyperparameters open by .*max_rows"),
    ("classes", {"mode_tolerance": 1e-13}, r"the linear mode is known to 0\.00\d*% only|reached an estimated"),
]


@pytest.mark.parametrize(("kind", "asked", "said"), OPEN)
def test_the_reason_is_the_quantity_that_is_open(kind, asked, said):
    """Never "still change by 0.0 %": where the change is small something else keeps EM from having settled."""
    classes = kind == "classes"
    la = helpers.laplace(
        helpers.classifier() if classes else helpers.regressor(), "categorical" if classes else sampla.Gaussian(1e4),
        prior=sampla.GPrior(), solver="block-cg", em=sampla.EM(exact_up_to=0, **asked), num_samples=8,
    )  # fmt: skip
    with pytest.warns(sampla.ConvergenceWarning, match=said) as caught:
        la.fit(helpers.class_batches() if classes else helpers.regression_batches())
    assert not any("change by 0.0%" in str(one.message) for one in caught)
    kinds = [str(one.message)[:20] for one in caught if issubclass(one.category, ConvergenceWarning)]
    assert len(kinds) == len(set(kinds)), "one of each kind"
    if not la.report_.settled:
        assert la.report_.unsettled in la.report_.advice


def test_the_worst_is_quoted_and_counted():
    def nested():
        with one_of_each(stacklevel=4), one_of_each(stacklevel=4):
            for kind, size, message in (("a", 1.0, "a little."), ("a", 5.0, "a lot."), ("b", 1.0, "b.")):
                complain(kind, size, message)
            complain("a", float("nan"), "a NaN.")

    with pytest.warns(ConvergenceWarning) as said:
        nested()
    assert [str(one.message) for one in said] == ["a lot. This is the worst of 3 such cases in this fit.", "b."]


def test_an_error_takes_its_warnings_along():

    def failing():
        with one_of_each(stacklevel=4):
            complain("a", 1.0, "a.")
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        failing()
    with pytest.warns(ConvergenceWarning, match="at once"):
        complain("a", 1.0, "at once")


def test_two_fits_on_two_threads_do_not_mix():
    """The other thread's complaint is issued there, not collected here."""
    seen = []

    def other():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            complain("a", 1.0, "there.")
            seen.extend(str(one.message) for one in caught)

    def here():
        with one_of_each(stacklevel=4):
            complain("a", 1.0, "here.")
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
            assert seen == ["there."]

    with pytest.warns(ConvergenceWarning) as said:
        here()
    assert [str(one.message) for one in said] == ["here."]


def test_shares_of_layers_are_at_least_zero_and_add_up():
    """Of sampled shares some are negative: the nearest ones that are not, weighted by their errors."""
    from sampla.inference.evidence import at_least_zero

    sampled = {"a": (700.0, 300.0), "b": (-200.0, 150.0), "c": (-513.0, 300.0), "d": (23.0, 1.0)}
    shares = {name: share for name, (share, _) in at_least_zero(sampled).items()}
    assert sum(shares.values()) == pytest.approx(10.0)
    assert shares["b"] == shares["c"] == 0
    assert shares["d"] == pytest.approx(10.0, abs=0.2), "what is known well moves least"
    fine = {"a": (3.0, 1.0), "b": (0.0, 1.0)}
    assert at_least_zero(fine) == fine


def test_a_layer_that_the_samples_do_not_resolve_is_not_given_a_number():
    """A fit whose probes are few and whose features are scaled unevenly: no negative part, and the words say why."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(*[part for _ in range(4) for part in (torch.nn.Linear(3, 3), torch.nn.Tanh())]).eval()
    x = torch.randn(30, 3)
    la = helpers.laplace(
        net,
        sampla.Gaussian(1.0),
        prior=sampla.GPrior(1e-3, learn=False),
        solver="block-cg",
        num_samples=3,
        log_evidence=False,
    )
    report = la.fit([(x, torch.randn(30, 3))]).report_
    shares, errors = report.effective_dimension_by_layer, report.effective_dimension_by_layer_error
    assert min(shares.values()) >= 0
    assert sum(shares.values()) == pytest.approx(sum(report.effective_dimension))
    hidden = sum(shares[name] <= 2 * errors[name] for name in shares)
    assert hidden > 0
    assert f"({hidden} of them not resolved by K = 3 samples)" in str(report)
