"""Memory that runs out and devices that fail, at every stage: what to do is said, and nothing that was kept is lost."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sampla
from helpers import assert_unchanged, class_batches, classifier, inputs, laplace, snapshot
from sampla.core import noise
from sampla.core.memory import is_device_failure, is_of_the_machine, is_out_of_memory
from sampla.inference import krylov
from sampla.laplace.guards import modules
from sampla.model import LinearModel
from sampla.solvers import block_cg
from sampla.survey import FirstLook

GONE = (
    "CUDA error: unspecified launch failure\nCUDA kernel errors might be asynchronously reported at some other API call"
)
FULL = "CUDA out of memory. Tried to allocate 2.00 GiB."
DeviceError: type[Exception] = getattr(torch, "AcceleratorError", RuntimeError)  # older versions have none of its own
EM: dict[str, Any] = {"prior": "isotropic", "solver": "block-cg", "width": "em"}


def gone() -> Exception:
    return DeviceError(GONE)


def full() -> Exception:
    return torch.OutOfMemoryError(FULL)


def notes(error: BaseException) -> str:
    return " ".join(getattr(error, "__notes__", []))


@pytest.mark.parametrize(
    ("error", "memory", "device"),
    [
        (gone(), False, True),
        (full(), True, False),
        (RuntimeError("CUDA error: out of memory"), True, False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True, False),
        (RuntimeError("CUDA error: device-side assert triggered"), False, True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), False, True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"), False, False),  # of this operation: others may do
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False, False),
        (ValueError("CUDA error"), False, False),
    ],
)
def test_errors_of_the_machine_are_told_from_others(error: Exception, memory: bool, device: bool) -> None:
    assert (is_out_of_memory(error), is_device_failure(error)) == (memory, device)
    assert is_of_the_machine(error) == (memory or device)


class Ending(nn.Module):
    """``classifier()`` whose device fails at its n-th call."""

    def __init__(self, at_call: int, error: Callable[[], Exception] = gone) -> None:
        super().__init__()
        self.inner, self.at, self.error, self.calls = classifier(), at_call, error, 0
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls >= self.at:  # it does not come back
            raise self.error()
        outputs: Tensor = self.inner(x)
        return outputs


@pytest.mark.parametrize("at_call", [1, 2, 4, 6, 9, 14, 30])
def test_a_device_that_fails_at_any_call_is_said_and_not_worked_around(at_call: int) -> None:
    network = Ending(at_call)
    before = snapshot(network)
    with pytest.raises(DeviceError, match="unspecified launch failure") as raised:
        laplace(network, **EM).fit(class_batches())
    assert network.calls == at_call
    assert_unchanged(network, before)
    assert "start another one. fit(loader, checkpoint='a folder') would have kept" in notes(raised.value)


@pytest.fixture(scope="module")
def healthy() -> tuple[Ending, sampla.LinearisedLaplace]:
    """A device that does not fail, and the fit on it."""
    network = Ending(10**9)
    return network, laplace(network, **EM).fit(class_batches())


@pytest.mark.parametrize("share", [0.5, 0.75, 0.95])
@pytest.mark.parametrize("error", [gone, full])
def test_a_fit_goes_on_from_what_it_has_kept(
    healthy: tuple[Ending, sampla.LinearisedLaplace], error: Callable[[], Exception], share: float, tmp_path: Path
) -> None:
    """Every pass that was taken before is known: both runs together call the network little more often than one."""
    calls, whole = healthy[0].calls, healthy[1]
    broken, again = Ending(int(share * calls), error), Ending(10**9)
    with pytest.raises((DeviceError, MemoryError)):
        laplace(broken, **EM).fit(class_batches(), checkpoint=tmp_path)
    checks = 20  # calls for the checks of the network, the data and the likelihood, which every run makes
    found = laplace(again, **EM).fit(class_batches(), checkpoint=tmp_path)
    assert again.calls < (1 - share) * calls + checks
    assert found.report_.passes == pytest.approx(whole.report_.passes, rel=0.05)
    assert torch.equal(found.samples_["inner.0.weight"], whole.samples_["inner.0.weight"])


STAGES: dict[str, Callable[[pytest.MonkeyPatch, Callable[..., Any]], None]] = {
    "survey": lambda patch, fails: patch.setattr(FirstLook, "_prior_mean", fails),
    "noise": lambda patch, fails: patch.setattr(LinearModel, "draw_noise", fails),
    "Krylov space": lambda patch, fails: patch.setattr(krylov, "orthonormal", fails),
    "block CG": lambda patch, fails: patch.setattr(block_cg, "orthonormal_pair", fails),
}


@pytest.mark.parametrize("error", [gone, full])
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_says_what_to_do_and_leaves_its_checkpoint(
    stage: str, error: Callable[[], Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise error()

    kind = "gaussian" if stage == "survey" else "categorical"
    loader = [(x, torch.sin(x[:, :1]) if kind == "gaussian" else y) for x, y in class_batches()]
    outputs = 1 if kind == "gaussian" else 3
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, outputs)).eval()
    with monkeypatch.context() as patch:
        STAGES[stage](patch, fails)
        with pytest.raises(RuntimeError) as raised:
            laplace(network, kind, **EM).fit(loader, checkpoint=tmp_path)
    said = notes(raised.value)
    if error is full:
        assert "take a smaller num_samples" in said
        assert "vectors_on='cpu'" in said
    else:
        assert f"What the fit has kept in {str(tmp_path)!r} is whole" in said
    assert laplace(network, kind, **EM).fit(loader, checkpoint=tmp_path).report_.settled


@pytest.mark.parametrize("most", [1, 2, 5])
def test_predictions_are_made_in_parts_where_memory_is_short(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    la = laplace(classifier()).fit(class_batches())
    expected = la.predict(inputs(6))
    original = la.model.forward

    def short(x: Tensor) -> Tensor:
        if len(x) > most:
            raise full()
        return original(x)

    monkeypatch.setattr(la.model, "forward", short)
    found = la.predict(inputs(6))
    torch.testing.assert_close(found.mean, expected.mean)
    torch.testing.assert_close(found.std, expected.std)


@pytest.mark.parametrize(
    ("error", "said"), [(gone, "unless la.save"), (full, "one datum and one vector to fit into memory")]
)
def test_a_prediction_that_fails_says_what_to_do(error: Callable[[], Exception], said: str) -> None:
    network = Ending(10**9, error)
    la = laplace(network).fit(class_batches())
    network.at = network.calls + 1
    with pytest.raises((RuntimeError, MemoryError)) as raised:
        la.predict(inputs(4))
    assert said in f"{raised.value} {notes(raised.value)}"


def test_a_device_without_float64_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modules, "has_float64", lambda _: False)
    match = r"expected a device that computes in float64.*got cpu. Move the network to the CPU, model.cpu\(\)"
    for call in ("fit", "plan"):
        with pytest.raises(ValueError, match=match):
            getattr(laplace(classifier()), call)(class_batches())


def test_whether_a_device_has_float64_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    assert noise.has_float64(torch.device("cpu"))

    def refused(*_: Any, **__: Any) -> Tensor:
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64.")

    noise.has_float64.cache_clear()
    monkeypatch.setattr(torch, "zeros", refused)
    assert not noise.has_float64(torch.device("mps"))
    noise.has_float64.cache_clear()


def test_a_type_that_a_device_does_not_have_is_said() -> None:
    class Old(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = classifier().bfloat16()
            self.eval()

        def forward(self, x: Tensor) -> Tensor:
            if self.inner[0].weight.dtype == torch.bfloat16:
                raise RuntimeError("\"addmm_impl_cuda_\" not implemented for 'BFloat16'")
            outputs: Tensor = self.inner(x)
            return outputs

    with pytest.raises(RuntimeError, match=r"not implemented for 'BFloat16'\s.*in that type: model.float\(\)"):
        laplace(Old()).fit([(x.bfloat16(), y) for x, y in class_batches()])
