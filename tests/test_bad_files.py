"""Files that are damaged, foreign or another network's, folders of another fit, and disks that are full."""

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

import sampla
from helpers import (
    assert_unchanged,
    class_batches,
    classifier,
    inputs,
    laplace,
    regression_batches,
    regressor,
    snapshot,
)
from sampla.core import checkpoint


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A posterior of ``classifier()`` on disk."""
    path = tmp_path / "posterior.safetensors"
    laplace(classifier()).fit(class_batches()).save(path)
    return path


def load_refused(path: Path, model: nn.Module, error: type[Exception], match: str) -> None:
    before = snapshot(model)
    with pytest.raises(error, match=match):
        sampla.LinearisedLaplace.load(path, model)
    assert_unchanged(model, before)


def test_what_was_saved_is_loaded(saved: Path) -> None:
    fitted = laplace(classifier()).fit(class_batches())
    loaded = sampla.LinearisedLaplace.load(saved, classifier())
    assert torch.equal(loaded.predict(inputs()).variance, fitted.predict(inputs()).variance)
    assert loaded.report_.num_data == 24


def test_network_of_other_shapes(saved: Path) -> None:
    match = r"expected the network that .* was fitted to, got another one: '2.weight' is \(1, 6\) here. Build the same"
    load_refused(saved, regressor(), ValueError, match)


def test_network_without_the_parameters(saved: Path) -> None:
    load_refused(saved, nn.Linear(2, 3).eval(), ValueError, "got another one: '0.weight' is missing here")


def test_network_of_other_weights(saved: Path) -> None:
    match = (
        "expected the weights that .* got the same architecture with other weights. Load the network's own state_dict"
    )
    load_refused(saved, classifier(seed=1), ValueError, match)


def test_one_weight_changed_in_its_last_bit(saved: Path) -> None:
    model = classifier()
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nextafter(model[0].weight[0, 0], torch.tensor(9.0))
    load_refused(saved, model, ValueError, "the same architecture with other weights")


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, -1])
def test_truncated_file(saved: Path, kept: float) -> None:
    content = saved.read_bytes()
    saved.write_bytes(content[: int(kept * len(content)) if 0 < kept < 1 else int(kept)])
    load_refused(saved, classifier(), ValueError, "is damaged or not a safetensors file .* it may have been cut short")


def test_pickle_is_not_opened(saved: Path) -> None:
    torch.save({"samples": torch.zeros(2)}, saved)
    load_refused(saved, classifier(), ValueError, "is damaged or not a safetensors file")


def test_foreign_safetensors_file(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    match = (
        "expected a file of format 'sampla-2', got None in .*written by another program or another version of sampla"
    )
    load_refused(path, classifier(), ValueError, match)


def test_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "nowhere.safetensors"
    load_refused(path, classifier(), FileNotFoundError, "expected a file saved by sampla, found none at .*nowhere")


def test_checkpoint_is_no_posterior_nor_the_other_way_round(tmp_path: Path, saved: Path) -> None:
    la = laplace(classifier(), prior="isotropic")
    la.fit(class_batches(), checkpoint=tmp_path / "fit")
    state = tmp_path / "fit" / "em-state.safetensors"
    load_refused(state, classifier(), ValueError, r"expected a posterior in .*, got another file of sampla's.*save\(\)")
    state.write_bytes(saved.read_bytes())
    with pytest.raises(ValueError, match=r"expected an EM state in .*, got another file of sampla's"):
        la.fit(class_batches(), checkpoint=tmp_path / "fit")


class Own(sampla.Categorical):
    """A likelihood that a file can only name."""


def test_likelihood_of_ones_own_must_be_given_again(saved: Path) -> None:
    laplace(classifier(), Own()).fit(class_batches()).save(saved)
    load_refused(saved, classifier(), ValueError, r"with your own likelihood Own: pass load\(..., likelihood=...\)")
    assert sampla.LinearisedLaplace.load(saved, classifier(), likelihood=Own()).report_.num_samples == 4


# Writing


@pytest.mark.parametrize(
    "failure", [SafetensorError("I/O error: No space left on device"), OSError(errno.EACCES, "Permission denied")]
)
def test_full_or_closed_disk_keeps_the_older_file(
    saved: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    older = saved.read_bytes()

    def half_written(_tensors: Any, path: Path, _metadata: Any) -> None:
        path.write_bytes(b"half")
        raise failure

    la = laplace(classifier()).fit(class_batches())
    monkeypatch.setattr(checkpoint, "save_file", half_written)
    with pytest.raises(OSError, match=r"could not write .*posterior.safetensors \(\d+ bytes\): .*disk has room"):
        la.save(saved)
    assert saved.read_bytes() == older
    assert list(saved.parent.iterdir()) == [saved]
    assert la.predict(inputs()).variance.shape == (24, 3)


def test_no_such_folder(tmp_path: Path) -> None:
    la = laplace(classifier()).fit(class_batches())
    with pytest.raises(OSError, match=r"could not write .*Check that the folder exists"):
        la.save(tmp_path / "no" / "such" / "folder.safetensors")


def test_disk_that_fills_up_during_a_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    la = laplace(classifier(), prior="isotropic")
    la.fit(class_batches())
    earlier, before = la.predict(inputs()).variance, snapshot(la.model)

    def full(*_: Any) -> None:
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match=r"could not write .*noise.safetensors.*No space left"):
        la.fit(class_batches(), checkpoint=tmp_path)
    assert_unchanged(la.model, before)
    assert torch.equal(la.predict(inputs()).variance, earlier)


# Folders


@pytest.mark.parametrize(
    ("settings", "other"),
    [
        ({"model": classifier(seed=3)}, "network"),
        ({"seed": 5}, "seed"),
        ({"num_samples": 6}, "num_samples"),
        ({"prior": "g-prior"}, "prior"),
        ({"solver": "block-cg"}, "solver"),
        ({"parameters": ["2.*"]}, "parameters"),
        ({"prior": sampla.Isotropic(2.0), "seed": 1}, "prior, seed"),
        ({"tolerance": 0.5, "prior": sampla.Layerwise(groups={"all": [""]})}, "prior"),
    ],
)
def test_checkpoint_folder_of_another_fit(tmp_path: Path, settings: dict[str, Any], other: str) -> None:
    common: dict[str, Any] = {"model": classifier(), "prior": "isotropic"}
    laplace(**common).fit(class_batches(), checkpoint=tmp_path)
    la = laplace(**{**common, **settings})
    before = snapshot(la.model)
    match = f"expected a checkpoint of this fit in .*, got one with other {other}. Use another folder, or remove"
    with pytest.raises(ValueError, match=match):
        la.fit(class_batches(), checkpoint=tmp_path)
    assert_unchanged(la.model, before)


def test_checkpoint_folder_of_other_data(tmp_path: Path) -> None:
    laplace(classifier(), prior="isotropic").fit(class_batches(), checkpoint=tmp_path)
    with pytest.raises(ValueError, match="got one with other data"):
        laplace(classifier(), prior="isotropic").fit(class_batches(lambda x: 2 * x), checkpoint=tmp_path)


def noisy_batches() -> Any:
    """Regression whose noise can be learnt: a function without noise has no noise precision to settle at."""
    noise = 0.3 * torch.randn(24, 1, generator=torch.Generator().manual_seed(3))
    return regression_batches(lambda y: y + noise)


def test_fit_that_was_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    whole = laplace(regressor(), "gaussian", prior="isotropic").fit(noisy_batches())
    calls = 0

    class Stopping(list):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            nonlocal calls
            calls += 1
            if calls == 12:
                raise KeyboardInterrupt
            return super().__iter__()

    stopped = laplace(regressor(), "gaussian", prior="isotropic")
    with pytest.raises(KeyboardInterrupt):
        stopped.fit(Stopping(noisy_batches()), checkpoint=tmp_path)
    assert list(tmp_path.iterdir())
    resumed = laplace(regressor(), "gaussian", prior="isotropic").fit(noisy_batches(), checkpoint=tmp_path)
    assert len(resumed.report_.trace) == len(whole.report_.trace)
    assert torch.equal(resumed.prior_precision_, whole.prior_precision_)
    assert torch.equal(resumed.predict(inputs()).variance, whole.predict(inputs()).variance)


def test_damaged_checkpoint(tmp_path: Path) -> None:
    la = laplace(classifier(), prior="isotropic")
    la.fit(class_batches(), checkpoint=tmp_path)
    state = tmp_path / "em-state.safetensors"
    state.write_bytes(state.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"em-state.safetensors is damaged or not a safetensors file"):
        la.fit(class_batches(), checkpoint=tmp_path)
