"""A fit that goes on from its folder ends as if it had never been stopped, or is refused with the reason."""

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import sampla
from helpers import laplace
from reliability.fits import CLASSES, DATA, KINDS, REAL, batches, door, network, same
from sampla.solvers import DenseDual


class Stopping:
    """A loader that is interrupted after so many readings."""

    def __init__(self, batches: Any, readings: int) -> None:
        self.batches, self.left = batches, readings

    def __iter__(self) -> Iterator[Any]:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return iter(self.batches)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.filterwarnings("ignore::sampla.ConvergenceWarning")
def test_whenever_it_is_stopped_it_ends_the_same_to_the_bit(name: str, tmp_path: Path) -> None:
    data = batches(name)
    whole = door(name).fit(data)
    readings, resumed = whole.report_.sweeps, 0
    for after in (readings // 3, 2 * readings // 3, readings - 2):
        folder = tmp_path / str(after)
        with pytest.raises(KeyboardInterrupt):
            door(name).fit(Stopping(data, after), checkpoint=folder)
        resumed += (folder / "em-state.safetensors").exists()
        again = door(name).fit(data, checkpoint=folder)
        assert same(whole, again), f"{name}: stopped after {after} of {readings} readings"
        assert len(again.report_.trace) == len(whole.report_.trace)
    assert resumed or len(whole.report_.trace) == 1


@pytest.mark.filterwarnings("ignore::sampla.ConvergenceWarning")
def test_traces_that_had_to_become_exact_stay_exact(tmp_path: Path) -> None:
    """Nothing is sampled once more at the first step after a stop, which might then take the noise for known."""
    data = [(DATA[:12].double(), REAL[:12].double())]

    def fitted(steps: int, folder: Path | None = None) -> sampla.LinearisedLaplace:
        em, prior = sampla.EM(exact_up_to=5, max_steps=steps), sampla.GPrior(precision=0.01, learn=False)
        noise = sampla.Gaussian(structure="diagonal")
        return laplace(network(2).double(), noise, solver="block-cg", prior=prior, em=em).fit(data, folder)

    whole = fitted(6)
    fitted(3, tmp_path)
    again = fitted(6, tmp_path)
    assert [row["passes"] for row in whole.report_.trace][2:] == [0] * 4
    costs = [[row["products"] for row in each.report_.trace] for each in (whole, again)]
    assert costs[0] == costs[1]
    assert same(whole, again)


@pytest.mark.parametrize("learnt", [True, False])
@pytest.mark.filterwarnings("ignore::sampla.ConvergenceWarning")
def test_em_by_the_matrix_of_all_outputs(learnt: bool, tmp_path: Path) -> None:
    """Wherever it is stopped: before its matrix, while that is formed, after its one step, in the final solve."""
    rows, targets = DATA[:20].double(), REAL[:20].double()
    data = list(zip(rows.split(10), targets.split(10), strict=True))

    def fitted(loader: Any, folder: Path | None = None) -> sampla.LinearisedLaplace:
        noise = sampla.Gaussian() if learnt else sampla.Gaussian(10.0)
        em, solver = sampla.EM(method="outputs"), DenseDual()
        return laplace(network(2).double(), noise, solver=solver, prior="isotropic", em=em).fit(loader, folder)

    whole = fitted(data)
    assert whole.report_.method == "outputs"
    kept = []
    for after in range(3, whole.report_.sweeps, 6):
        folder = tmp_path / str(after)
        with pytest.raises(KeyboardInterrupt):
            fitted(Stopping(data, after), folder)
        kept.append((folder / "em-state.safetensors").exists())
        again = fitted(data, folder)
        assert same(whole, again), f"stopped after {after} of {whole.report_.sweeps} readings"
        assert len(again.report_.trace) == len(whole.report_.trace)
        assert again.report_.effective_dimension == whole.report_.effective_dimension
        assert again.report_.log_evidence == whole.report_.log_evidence
    assert any(kept)
    assert not all(kept)


def shuffled(seed: int) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(TensorDataset(DATA, REAL), 16, shuffle=True, generator=generator)


@pytest.mark.parametrize("after", [4, 6, 8])
def test_a_loader_that_shuffles_does_no_harm(after: int, tmp_path: Path) -> None:
    whole = door("gaussian").fit(shuffled(1))
    with pytest.raises(KeyboardInterrupt):
        door("gaussian").fit(Stopping(shuffled(1), after), checkpoint=tmp_path)
    again = door("gaussian").fit(shuffled(7), checkpoint=tmp_path)
    assert again.report_.settled
    assert torch.allclose(again.prior_precision_, whole.prior_precision_, rtol=1e-3)
    assert again.noise_precision_ == pytest.approx(float(whole.noise_precision_), rel=1e-3)
    assert torch.allclose(again.predict(DATA).std, whole.predict(DATA).std, rtol=0.05)


@pytest.mark.parametrize(
    ("changes", "other"),
    [
        ({"em": sampla.EM(num_samples=4)}, "em"),
        ({"em": sampla.EM(mode_tolerance=0.01)}, "em"),
        ({"likelihood": sampla.Gaussian(structure="diagonal")}, "likelihood"),
        ({"likelihood": sampla.Gaussian(structure="full")}, "likelihood"),
        ({"num_samples": 5}, "num_samples"),
        ({"precision": "bfloat16"}, "type"),
        ({"model": network(2).double()}, "data, network, type"),
    ],
)
def test_another_fit_is_refused(changes: dict[str, Any], other: str, tmp_path: Path) -> None:
    batches = [(DATA, REAL)]
    laplace(network(2), sampla.Gaussian(), solver="block-cg", prior="g-prior").fit(batches, checkpoint=tmp_path)
    settings = {"model": network(2), "likelihood": sampla.Gaussian(), "solver": "block-cg", "prior": "g-prior"}
    settings |= changes
    if "model" in changes:
        batches = [(DATA.double(), REAL.double())]
    with pytest.raises(ValueError, match=f"one with other {other}. Use another folder"):
        laplace(**settings).fit(batches, checkpoint=tmp_path)


def test_harmless_changes_go_on_from_there(tmp_path: Path) -> None:
    batches, finer = [(DATA, CLASSES)], sampla.EM(tolerance=0.001)
    loose = door("categorical", em=sampla.EM(tolerance=0.3)).fit(batches, checkpoint=tmp_path)
    tight = door("categorical", em=finer, tolerance=0.01).fit(batches, checkpoint=tmp_path)
    assert len(tight.report_.trace) > len(loose.report_.trace)
    whole = door("categorical", em=finer).fit(batches)
    assert tight.report_.settled
    assert torch.allclose(tight.prior_precision_, whole.prior_precision_, rtol=0.01)
    assert tight.report_.passes > loose.report_.passes  # what the first run has spent counts


def test_a_folder_that_cannot_be_written_to_is_refused_before_any_work(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    untouched = Stopping([(DATA, REAL)], 0)
    with pytest.raises(OSError, match="expected checkpoint as a folder that can be written to"):
        door("gaussian").fit(untouched, checkpoint=blocked / "below")
    assert untouched.left == 0


@pytest.mark.skipif(sys.platform == "win32", reason="no such locks")
def test_two_fits_in_one_folder(tmp_path: Path) -> None:
    script = f"""
        import sys, fcntl, os
        handle = os.open({str(tmp_path)!r}, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
        print("held", flush=True)
        sys.stdin.read()
    """
    other = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RuntimeError, match="which another fit is using now"):
            door("gaussian").fit([(DATA, REAL)], checkpoint=tmp_path)
        other.stdin.close()
    door("gaussian").fit([(DATA, REAL)], checkpoint=tmp_path)
