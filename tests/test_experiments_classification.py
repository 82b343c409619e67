"""What the experiments with classifiers share (experiments/): no data set, no peer, a few seconds."""

import importlib.util
import io
import warnings
from dataclasses import asdict
from math import exp, log
from pathlib import Path

import numpy as np
import pytest
import torch
from experiments.classification import contenders, methods, peers, report, runner
from experiments.classification.experiment import Experiment, Settings, Task
from experiments.classification.kept import Earlier, kept
from experiments.classification.registry import METHODS
from experiments.common import corruptions, metrics, page, training
from experiments.common.corruptions import CORRUPTIONS, SEVERITIES, corrupted, rotated, turned
from experiments.common.images import Data, Images, Shift, cifar
from experiments.common.metrics import ECE, JOINT_NLL, MEASURES, NLL, PARTS, Labelled, Score
from experiments.common.networks import cifar10_network, resnet18, without_normalisation
from experiments.common.store import Row, Store, save_arrays
from experiments.common.training import Swag, swag_samples
from PIL import Image
from torch.nn.functional import affine_grid, grid_sample

import sampla
from sampla.posterior.metrics import expected_calibration_error

TORCHMETRICS = importlib.util.find_spec("torchmetrics") is not None


def pictures(count=6, side=32, channels=3):
    return np.random.default_rng(0).random((count, channels, side, side), dtype=np.float32)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_corruptions_are_deterministic_stay_in_range_and_grow_with_severity(kind):
    images, before = pictures(), 0.0
    for severity in SEVERITIES:
        spoiled = corrupted(images, severity, kind, seed=3)
        assert spoiled.shape == images.shape
        assert spoiled.dtype == np.float32
        assert spoiled.min() >= 0
        assert spoiled.max() <= 1
        np.testing.assert_array_equal(spoiled, corrupted(images, severity, kind, seed=3))
        distance = float(np.square(spoiled - images).mean())
        assert distance > before
        before = distance


def test_corruptions_do_not_mix_images_or_touch_their_input():
    images = pictures()
    copy = images.copy()
    for kind in set(CORRUPTIONS) - {"Gaussian noise"}:
        np.testing.assert_allclose(corrupted(images, 4, kind)[:2], corrupted(images[:2], 4, kind), atol=1e-6)
    np.testing.assert_array_equal(images, copy)


def test_images_turned_each_by_an_angle_of_its_own():
    """Against torch's sampling of a grid, at the angles of the seed; whichever way is positive."""
    images, fill = torch.from_numpy(pictures(20, 11)), torch.tensor([0.1, 0.2, 0.3])[:, None, None]
    angles = torch.from_numpy(np.deg2rad(70.0 * np.random.default_rng(5).uniform(-1, 1, 20))).float()
    rows = [torch.stack([angles.cos(), -angles.sin()], 1), torch.stack([angles.sin(), angles.cos()], 1)]
    turns = torch.cat([torch.stack(rows, 1), torch.zeros(20, 2, 1)], 2)
    grid = affine_grid(turns, list(images.shape), align_corners=False)
    expected = grid_sample(images - fill, grid, "nearest", "zeros", align_corners=False) + fill
    found = turned(images.numpy(), 70.0, (0.1, 0.2, 0.3), 5)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)
    np.testing.assert_array_equal(turned(images.numpy(), 0.0, (0.1, 0.2, 0.3), 5), images.numpy())


def test_each_corruption_against_its_definition():
    images = pictures(2, 12)
    np.testing.assert_allclose(
        corrupted(images, 4, "contrast"), images.mean((2, 3), keepdims=True) * 0.7 + 0.3 * images, atol=1e-6
    )
    np.testing.assert_allclose(corrupted(images, 5, "brightness"), np.minimum(images + 0.3, 1), atol=1e-6)
    noise = corrupted(np.full((1, 1, 100, 100), 0.5, np.float32), 5, "Gaussian noise", seed=1) - 0.5
    assert noise.std() == pytest.approx(0.1, rel=0.03)
    halved = corruptions._blocky(8, 4) @ np.arange(8)
    np.testing.assert_allclose(halved, [0.5, 0.5, 2.5, 2.5, 4.5, 4.5, 6.5, 6.5], atol=1e-6)


def test_unknown_corruption_is_refused():
    with pytest.raises(ValueError, match="'fog' at 3"):
        corrupted(pictures(), 3, "fog")


def test_rotation_by_a_right_angle_is_numpys():
    images = pictures(2, 9, 1)
    np.testing.assert_allclose(rotated(images, 0), images, atol=1e-6)
    np.testing.assert_allclose(rotated(images, 90), np.rot90(images, 1, (2, 3)), atol=1e-5)


def test_scores_against_a_hand_computation():
    """Two functions that give every label e^-0.1 and e^-2: a group of ten is explained by either of them."""
    count, a, b = 100, -0.1, -2.0
    each = torch.tensor([[a], [b]]).double().expand(2, count)
    right = (exp(a) + exp(b)) / 2
    probs = torch.tensor([right, 1 - right]).double().expand(count, 2)
    said = Labelled(probs, torch.zeros(count, dtype=torch.int64), each)
    expected = {
        "accuracy": 1, NLL: -log(right), "Brier": 2 * (1 - right) ** 2,
        JOINT_NLL: -log((exp(10 * a) + exp(10 * b)) / 2), ECE: 1 - right,
    }  # fmt: skip
    assert set(expected) == set(MEASURES)
    for name, value in expected.items():
        if name != ECE or TORCHMETRICS:
            rounding = 1e-5 if name == ECE else 1e-6  # torchmetrics adds up in float32
            assert MEASURES[name].score(said).value == pytest.approx(value, rel=rounding), name


def test_calibration_error_is_the_librarys():
    pytest.importorskip("torchmetrics")
    probs = (3 * torch.randn(300, 4, generator=torch.Generator().manual_seed(0))).softmax(-1)
    labels = torch.arange(300) % 4
    found = MEASURES[ECE].score(Labelled(probs, labels)).value
    assert found == pytest.approx(expected_calibration_error(probs, labels), rel=1e-5)


def test_a_method_without_a_joint_has_none():
    probs = torch.full((60, 3), 1 / 3)
    said = Labelled(probs, torch.zeros(60, dtype=torch.int64))
    assert MEASURES[JOINT_NLL].score(said) is None
    assert MEASURES[NLL].score(said).value == pytest.approx(log(3), rel=1e-6)


def test_jackknife_is_the_standard_error_of_a_mean_and_of_a_paired_difference():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, generator=generator).double()
    y = x + 0.1 * torch.randn(400, generator=generator).double()
    one, other = (metrics.jackknife(lambda r, v=v: float(v[r].mean()), 400) for v in (x, y))
    parts = np.array([float((x - y)[k::PARTS].mean()) for k in range(PARTS)])
    difference, error = one.minus(other)
    assert difference == pytest.approx(float((x - y).mean()), abs=1e-6)
    assert error == pytest.approx(parts.std(ddof=1) / PARTS**0.5, rel=1e-3)
    assert one.error == pytest.approx(float(x.std()) / 20, rel=0.5)
    assert one.error > 5 * error


def test_too_few_images_for_standard_errors_are_refused():
    with pytest.raises(ValueError, match="at least 40 images in a set, got 39"):
        metrics.jackknife(lambda _: 0.0, 39)


def test_auroc_of_what_is_told_always_and_never():
    confident, unsure = (torch.tensor([p, 1 - p]).expand(count, 2) for p, count in ((0.99, 50), (0.6, 60)))
    assert metrics.auroc(confident, unsure).value == 1
    assert metrics.auroc(unsure, confident).value == 0


def _contender(name, family, nll, accuracy=0.9):
    scores = {NLL: {"clean": Score(nll, [nll] * PARTS)}, "accuracy": {"clean": Score(accuracy, [accuracy] * PARTS)}}
    return contenders.Contender(name, name, "", family, scores)


def test_behind_is_positive_for_the_worse_whatever_the_measure():
    good, bad = _contender("good", "other", 0.2, 0.95), _contender("bad", "sampla", 0.5, 0.9)
    assert contenders.behind(bad, [good], ["clean"], NLL) == ("good", pytest.approx(0.3), pytest.approx(0))
    assert contenders.behind(bad, [good], ["clean"], "accuracy") == ("good", pytest.approx(0.05), pytest.approx(0))
    assert contenders.behind(good, [bad], ["clean"], NLL)[1] == pytest.approx(-0.3)
    assert contenders.behind(bad, [good], ["elsewhere"], NLL) is None


def _targets(those, shifts, classes):
    return "\n".join(f"{title}\n{lines}" for title, lines in report.targets(those, shifts, classes))


def test_verdicts_come_from_the_scores():
    ahead = [_contender("ours", "sampla", 0.2), _contender("theirs", "laplace-torch", 0.3)]
    text = _targets(ahead, (), 10)
    assert "clean images (1 of 1 rows met)" in text
    assert "| ours | **met** | -0.1000 ± 0.0000 | theirs |" in text
    assert "(0 of 1 rows met)" in _targets([_contender("ours", "sampla", 0.4), ahead[1]], (), 10)


def test_sets_on_which_the_network_is_no_better_than_a_guess_are_told_apart():
    shift = Shift("dimmed by", (0.1, 0.9), "", lambda x, _: x)
    found = [
        _contender("network", "other", 0.3),
        _contender("ours", "sampla", 0.2),
        _contender("theirs", "laplace-torch", 0.4),
    ]
    for one in found:
        mild, hard = (Score(v, [v] * PARTS) for v in (one.scores[NLL]["clean"].value, 5.0))
        one.scores[NLL].update({"dimmed by 0.1": mild, "dimmed by 0.9": hard})
    text = _targets(found, (shift,), 10)
    assert "beats a uniform guess (1 of 1 rows met)" in text
    assert "| ours | **met** | -0.1000 ± 0.0000 | theirs |" in text.split("mean of the shifted sets (")[1]
    assert "beats a uniform guess" not in _targets(found, (shift,), 1000)


def test_table():
    assert page.table(["a"], {"": str, "x": lambda _: "1"}) == "|  | x |\n| --- | ---: |\n| a | 1 |"
    assert page.table([], {"": str}) == ""


def test_kept_results_are_found_again_and_other_settings_are_refused(tmp_path):
    store = Store(tmp_path / "results.json", {"images": 5})
    store.put("network", {"fit_seconds": 1.0})
    again = Store(tmp_path / "results.json", {"images": 5})
    assert again.rows == {"network": Row({"fit_seconds": 1.0}, store.source)}
    assert again.once("network", dict) == store.rows["network"]
    del again.rows["network"]
    assert again.once("network", lambda: {"fit_seconds": 2.0})["fit_seconds"] == 2
    with pytest.raises(SystemExit, match="another one: give another --out"):
        Store(tmp_path / "results.json", {"images": 6})


def test_rows_of_another_source_are_computed_anew_only_when_asked(tmp_path):
    store = Store(tmp_path / "results.json", {})
    store.source = "another"
    one, two = {"value": 1}, {"value": 2}
    store.put("ours", one)
    store.put("theirs", one, ours=False)
    assert Store(store.path, {}).once("ours", lambda: two) == one
    anew = Store(store.path, {}, anew=True)
    assert (anew.once("ours", lambda: two), anew.once("theirs", lambda: two, ours=False)) == (two, one)


def test_a_new_measure_is_computed_from_the_kept_predictions(tmp_path):
    store = Store(tmp_path / "results.json", {})
    save_arrays(store.predictions("a/b"), mean=np.arange(4.0))
    store.put("a/b", {"seconds": 1.0})
    row = store.once("a/b", lambda: pytest.fail("fitted again"), measures={"total": lambda p: float(p["mean"].sum())})
    assert row == {"seconds": 1.0, "total": 6.0}
    assert Store(store.path, {}).rows["a/b"] == row


def test_what_was_fitted_to_other_images_is_forgotten(tmp_path, monkeypatch):
    store = Store(tmp_path / "results.json", {})
    marks = iter(["a", "a", "b"])
    monkeypatch.setattr(runner, "apart", lambda *_, **__: {"members": [], "fingerprint": next(marks)})
    for mark, rows in (("a", 2), ("a", 2), ("b", 1)):
        runner._prepare(store, {})
        assert store.rows["prepared"]["fingerprint"] == mark
        assert len(store.rows) == (rows if "network" in store.rows else 1)
        store.put("network", {"fit_seconds": 1.0})


def test_temperature_finds_by_how_much_logits_are_too_large():
    generator = torch.Generator().manual_seed(0)
    network = torch.nn.Flatten()
    true = 2 * torch.randn(4000, 3, 1, 1, generator=generator)
    labels = torch.multinomial(true.flatten(1).softmax(-1), 1, generator=generator)[:, 0]
    made = Images(3 * true, labels)
    task = Task(network, (), Data(made, made, made, {}), _settings())
    fitted = methods.temperature(task)
    assert fitted.facts["temperature"] == pytest.approx(3, rel=0.1)
    probs = fitted.predict(made.images)[""].probs
    expected = (3 * true.flatten(1) / fitted.facts["temperature"]).softmax(-1)
    torch.testing.assert_close(probs, expected)


class _Posterior:
    """What ``kept`` needs of a fit."""

    def save(self, path):
        path.write_text("kept")


def test_a_fit_that_has_ended_is_not_done_twice_and_one_that_was_cut_off_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(sampla.LinearisedLaplace, "load", lambda path, network: (path.read_text(), network))
    folders = []

    def cut(checkpoint):
        checkpoint.mkdir(parents=True)
        raise KeyboardInterrupt

    def fit(checkpoint):
        folders.append(checkpoint)
        if checkpoint is not None:
            checkpoint.mkdir(parents=True, exist_ok=True)
        sum(range(3_000_000))
        warnings.warn_explicit("it is slow", UserWarning, "sampla/fit.py", 1)
        return _Posterior()

    with pytest.warns(UserWarning, match="it is slow"):
        assert kept(None, "network", fit)[1] == Earlier()
    assert kept(tmp_path / "a", "network", fit)[1] == Earlier(warnings=("it is slow",))
    la, earlier = kept(tmp_path / "a", "network", fit)
    assert la == ("kept", "network")
    assert earlier.seconds > 0
    assert earlier.peak > 2**20
    assert (list(earlier.warnings), earlier.continued) == (["it is slow"], False)
    with pytest.raises(KeyboardInterrupt):
        kept(tmp_path / "b", "network", cut)
    assert kept(tmp_path / "b", "network", fit)[1].continued
    assert kept(tmp_path / "b", "network", fit)[1].continued
    assert folders == [None, tmp_path / "a" / "checkpoint", tmp_path / "b" / "checkpoint"]


def test_a_scaled_row_predicts_from_the_fit_of_the_row_that_is_not(tmp_path):
    experiment = _experiment()
    settings = experiment.full
    made = experiment.load(Path(), settings)
    network = experiment.trained(made, settings, None, 0)[0]
    rows = {}
    for fits in (None, tmp_path):
        task = Task(network, (network,), made, settings, fits)
        rows[fits] = [METHODS[key].fit(task) for key in ("sampla-g", "sampla-g-scaled")]
    assert len(list(tmp_path.iterdir())) == 1
    for alone, shared in zip(rows[None], rows[tmp_path], strict=True):
        assert alone.facts["gamma"] == shared.facts["gamma"]
        torch.testing.assert_close(
            alone.predict(made.test.images)[""].probs, shared.predict(made.test.images)[""].probs
        )


def test_a_row_has_the_default_widths_and_beside_them_that_of_em():
    experiment = _experiment()
    settings, made = experiment.full, experiment.load(Path(), experiment.full)
    network = experiment.trained(made, settings, None, 0)[0]
    fitted = METHODS["sampla-g"].fit(Task(network, (network,), made, settings))
    la = sampla.LinearisedLaplace(
        network, "categorical", "g-prior", num_samples=settings.samples, seed=settings.seed, progress=False
    ).fit(made.train.batches(500))
    own, wide, labels = la.predict(made.test.images, num_draws=settings.draws), methods.EM_WIDTH, made.test.labels
    assert len({own.width, own.joint_width, 1.0}) == 3
    said = fitted.predict(made.test.images)
    assert said.keys() == {"", "probit", wide, f"{wide}, probit"}
    torch.testing.assert_close(said[""].probs, own.probs)
    torch.testing.assert_close(said[wide].probs, own.scaled(1.0).probs)
    arrays = runner._arrays("clean", said, labels)
    scores = {name: runner.measures(0)[name](arrays)["clean"] for name in (NLL, JOINT_NLL)}
    for way, one in (("", own), (wide, own.scaled(1.0))):
        assert scores[NLL][way][0] == pytest.approx(-float(one.log_prob(labels).mean()), rel=1e-5)
    assert scores[JOINT_NLL][""] != scores[JOINT_NLL][wide]


def test_linearised_predictions_of_a_linear_network_are_its_own_under_other_weights():
    torch.manual_seed(0)
    network, x = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3)), torch.randn(5, 1, 2, 2)
    samples = torch.randn(6, 15)
    predict = methods.linearised(network, ["1.weight", "1.bias"], samples, draws=4000)
    outputs = torch.einsum("kcd,nd->knc", samples[:, :12].view(6, 3, 4), x.flatten(1)) + samples[:, None, 12:]
    probit = (network(x) / (1 + torch.pi / 8 * outputs.square().mean(0)).sqrt()).softmax(-1)
    torch.testing.assert_close(predict(x)["probit"].probs, probit)
    assert (predict(x)[""].probs - probit).abs().max() < 0.1


def test_names_of_a_last_layer_and_of_all_weights():
    network = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 3))
    names = ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert peers._names(without_normalisation(network), 43) == names
    assert peers._names(network, 18) == names[2:]
    with pytest.raises(ValueError, match="whole parameter tensors, got 17"):
        peers._names(network, 17)


def test_swag_samples_differ_and_leave_the_network_alone():
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.Flatten(), torch.nn.Linear(32, 3)
    )
    before = {name: t.clone() for name, t in network.eval().state_dict().items()}
    train = Images(torch.rand(64, 1, 6, 6), torch.arange(64) % 3)
    recipe = Swag(epochs=4, learning_rate=0.05, snapshots=4, batch=16)
    drawn = swag_samples(network, train, recipe, 3, seed=0)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    weights = torch.stack([sample[3].weight.detach() for sample in drawn])
    assert (weights[0] - weights[1]).abs().max() > 1e-4
    assert not any(module.training for sample in drawn for module in sample.modules())
    again = swag_samples(network, train, recipe, 3, seed=0)
    torch.testing.assert_close(again[2][3].weight, drawn[2][3].weight)


def test_augmentation_shifts_and_flips():
    images = torch.arange(64.0).view(1, 1, 8, 8).expand(200, 1, 8, 8)
    changed = training.augmented(images, torch.Generator().manual_seed(0))
    assert changed.shape == images.shape
    same = (changed == images).flatten(1).all(1) | (changed == images.flip(3)).flatten(1).all(1)
    assert 0 < int(same.sum()) < 20  # one shift in 81
    assert len({tuple(row) for row in changed.flatten(1).tolist()}) > 60


def test_networks_have_the_sizes_they_are_known_for():
    assert sum(p.numel() for p in cifar10_network().parameters()) == 269_722
    assert sum(p.numel() for p in resnet18().parameters()) == 11_220_132
    with torch.no_grad():
        assert cifar10_network().eval()(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_cifar_reader_decodes_the_wanted_strips(tmp_path):
    rng, originals = np.random.default_rng(0), []
    (tmp_path / "cifar10").mkdir()
    for number in range(5):
        pixels, strips = rng.integers(0, 256, (200, 32, 32, 3), dtype=np.uint8), []
        for strip in pixels.reshape(2, 3200, 32, 3):
            buffer = io.BytesIO()
            Image.fromarray(strip).save(buffer, "WEBP", lossless=True)
            strips.append(np.frombuffer(buffer.getvalue(), np.uint8))
        offsets = np.cumsum([0, *(len(s) for s in strips)])
        labels = np.full(200, number, np.uint8)
        np.savez(
            tmp_path / "cifar10" / f"train_{number}.npz", data=np.concatenate(strips), offsets=offsets, labels=labels
        )
        originals.append(pixels)
    chosen = torch.tensor([950, 3, 199, 200, 444, 3])
    found = cifar(tmp_path, "cifar10", "train", chosen)
    expected = torch.from_numpy(np.concatenate(originals)[chosen.numpy()]).permute(0, 3, 1, 2).float() / 255
    torch.testing.assert_close(found.images, expected, rtol=0, atol=0)
    assert found.labels.tolist() == [4, 0, 0, 1, 2, 0]


def _settings():
    return Settings(
        images=60, held_out=40, test=80, shifted=40, foreign=40, samples=4, draws=64,
        swag=Swag(epochs=2, learning_rate=0.01, snapshots=4, batch=20), ensemble=2, reference_samples=6,
    )  # fmt: skip


def _experiment():
    def architecture():
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3))

    def load(root, settings):  # noqa: ARG001
        generator = torch.Generator().manual_seed(0)

        def images(count):
            labels = torch.arange(count) % 3
            bright = torch.rand(count, 1, 4, 4, generator=generator) * 0.5
            bright[torch.arange(count), 0, labels] += 0.4
            return Images(bright, labels)

        parts = [images(n) for n in (settings.images, settings.held_out, settings.test)]
        return Data(*parts, {"noise": torch.rand(settings.foreign, 1, 4, 4, generator=generator)})

    def trained(images, settings, checkpoints, member):  # noqa: ARG001
        torch.manual_seed(member)
        network = architecture()
        optimiser = torch.optim.Adam(network.parameters(), 0.05)
        for _ in range(30):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(network(images.train.images), images.train.labels).backward()
            optimiser.step()
        return network.eval(), {"parameters": 123}

    keys = (
        "network",
        "temperature",
        "swag",
        "ensemble",
        "laplace-full",
        "sampla-isotropic",
        "sampla-g",
        "sampla-reference",
    )
    shift = Shift("dimmed by", (0.2, 0.4), "", lambda x, strength: x * (1 - strength))
    return Experiment(
        "toy", "A toy", "Made up.", load, architecture, trained, lambda _: (shift,), keys, _settings(), _settings(),
        classes=3, scale_to=1000, angles=True,
    )  # fmt: skip


def test_a_whole_experiment_on_a_toy(tmp_path, monkeypatch):
    if not TORCHMETRICS:
        without = {name: measure for name, measure in MEASURES.items() if name != ECE}
        for module in (contenders, report, runner):  # deleting it from the dict would put it last for all later tests
            monkeypatch.setattr(module, "MEASURES", without)
        monkeypatch.setattr(report, "ECE", NLL)
    experiment = _experiment()
    settings = experiment.full
    made = experiment.load(Path(), settings)
    networks = tuple(experiment.trained(made, settings, None, member)[0] for member in range(2))
    task = Task(networks[0], networks, Data.from_tensors(made.tensors()), settings)
    store = Store(tmp_path / "results.json", asdict(settings))
    store.put("prepared", {"members": [{"parameters": 123}], "fingerprint": "a"})
    monkeypatch.setattr(runner, "_MOST_SECONDS", 0.0)  # so that the full Laplace is planned, not fitted
    for key in experiment.methods:
        facts, arrays = runner.fitted_and_predicted(experiment, task, key)
        save_arrays(store.predictions(key), **arrays)
        store.put(key, facts)
        brief = runner._brief(store.scored(key, runner.measures(settings.seed)))
        assert brief == "does not fit: its cost is stated" if key == "laplace-full" else "NLL" in brief
    store.put("sampla-g", {"failed": "RuntimeError: made up"})
    report.write(experiment, Store(tmp_path / "results.json", asdict(settings)), tmp_path)
    text = (tmp_path / "results.md").read_text()
    for line in ("network alone", "temperature scaling", "SWAG", "ensemble", "sampla, isotropic"):
        assert f"| {line} |" in text
    assert "sampla, g-prior: FAILED, RuntimeError: made up" in text
    assert "laplace-torch, all weights, full: does not fit: 123 parameters" in text
    assert "hours for 1,000 images" in text
    assert "Uniform probabilities would have NLL 1.099 and joint NLL 10.99." in text
    assert "dimmed by" not in text.split("## Cost")[1]
    assert (tmp_path / "shifts.png").stat().st_size > 1000
    network, sampled = store.rows["network"], store.rows["sampla-isotropic"]
    assert sampled["accuracy"]["clean"][""][0] == pytest.approx(network["accuracy"]["clean"][""][0], abs=0.1)
    wide = methods.EM_WIDTH
    assert sampled[NLL]["clean"][wide][0] != network[NLL]["clean"][""][0]
    assert set(sampled["AUROC"]["noise"]) == {"", "probit", wide, f"{wide}, probit"}
