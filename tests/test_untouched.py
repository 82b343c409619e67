"""The user's network comes back exactly as it was: after success, after an error in its forward, after Ctrl-C."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sampla
from helpers import assert_unchanged, class_batches, classifier, inputs, laplace, normalised, snapshot
from sampla.features._kernels import differentiable

SOLVERS = ["dense", "block-cg", "sgd"]


class Interrupting(list):  # type: ignore[type-arg]
    """A list of batches that raises at one batch of one pass (both counted from 1)."""

    def __init__(self, batches: list[Any], at_pass: int, at_batch: int, error: BaseException) -> None:
        super().__init__(batches)
        self._at, self._error, self.passes = (at_pass, at_batch), error, 0

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        for number, batch in enumerate(super().__iter__(), start=1):
            if (self.passes, number) == self._at:
                raise self._error
            yield batch


class Failing(nn.Module):
    """``normalised()`` followed by a layer that raises at its n-th call, in the middle of functional_call."""

    def __init__(self, at_call: int, error: BaseException) -> None:
        super().__init__()
        self.inner, self._at, self._error, self._calls = normalised(), at_call, error, 0
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        self._calls += 1
        outputs: Tensor = self.inner(x)
        if self._calls == self._at:
            raise self._error
        return outputs


def _hooked(model: nn.Module) -> list[str]:
    """Put hooks of several kinds on the model; returns the list in which they record their calls."""
    calls: list[str] = []
    model.register_forward_hook(lambda *_: calls.append("forward"))
    model[0].register_forward_pre_hook(lambda *_: calls.append("pre"))
    model[4].register_full_backward_hook(lambda *_: calls.append("backward"))
    return calls


@pytest.mark.filterwarnings("ignore::sampla.ConvergenceWarning")  # SGD may not prove what is asked
@pytest.mark.parametrize("solver", SOLVERS)
def test_after_fit_and_predict(solver: str) -> None:
    model = normalised()
    before = snapshot(model)
    em = sampla.EM(tolerance=0.9, solve_tolerance=0.9)
    la = laplace(model, solver=solver, prior="isotropic", tolerance=0.9, em=em)
    la.fit(class_batches())
    assert_unchanged(model, before)
    _ = la.predict(inputs()).probs
    assert_unchanged(model, before)
    assert "does not require grad" in la.report_.excluded_parameters.values()


def test_hooks_stay_and_still_fire() -> None:
    model = normalised()
    calls = _hooked(model)
    before = snapshot(model)
    laplace(model).fit(class_batches()).predict(inputs())
    assert_unchanged(model, before)
    calls.clear()
    model(inputs().requires_grad_()).sum().backward()
    assert calls == ["pre", "forward", "backward"]


def test_training_can_go_on() -> None:
    model, other = normalised(), normalised()
    laplace(model).fit(class_batches())
    for net in (model, other):
        net.train()
        torch.manual_seed(5)
        optimiser = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
        for x, y in class_batches():
            nn.functional.cross_entropy(net(x), y).backward()
            optimiser.step()
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def test_a_posterior_stays_about_the_weights_it_was_fitted_to(tmp_path: Path) -> None:
    model, path = classifier(), tmp_path / "posterior.safetensors"
    la = laplace(model).fit(class_batches())
    mean, variance = la.predict(inputs()).mean, la.predict(inputs()).variance
    with torch.no_grad():
        model[0].weight.mul_(2)
    with pytest.raises(
        ValueError, match=r"posterior was fitted to, .* got one in which 1 tensor has changed: '0.weight'"
    ):
        la.predict(inputs())
    la.save(path)
    with pytest.raises(ValueError, match="the same architecture with other weights"):
        sampla.LinearisedLaplace.load(path, model)
    assert torch.equal(sampla.LinearisedLaplace.load(path, classifier()).predict(inputs()).mean, mean)
    with torch.no_grad():
        model[0].weight.div_(2)
    assert torch.equal(la.predict(inputs()).mean, mean)
    assert torch.equal(la.predict(inputs()).variance, variance)


def test_global_state_of_torch_stays() -> None:
    model = classifier()
    random_state, grad_mode = torch.get_rng_state(), torch.is_grad_enabled()
    laplace(model).fit(class_batches()).predict(inputs())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.is_grad_enabled() == grad_mode


class Recording(nn.Module):
    """A network that notes the flags of cuDNN whenever it runs."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.inner, self.found = nn.Sequential(*layers), set[tuple[Any, ...]]()
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        self.found.add(cudnn_flags())
        outputs: Tensor = self.inner(x)
        return outputs


def cudnn_flags() -> tuple[Any, ...]:
    """What the user may have set, by the older and the newer interface; torch reads no older flag beside newer ones."""
    cudnn = torch.backends.cudnn
    every = [cudnn.enabled, cudnn.benchmark, cudnn.benchmark_limit, cudnn.deterministic, cudnn.fp32_precision]
    try:
        tf32 = cudnn.allow_tf32
    except RuntimeError:
        tf32 = None
    return *every, cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision, tf32


@pytest.fixture
def _own_cudnn_flags() -> Iterator[None]:
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32
    yield
    cudnn.fp32_precision = cudnn.conv.fp32_precision = cudnn.rnn.fp32_precision = "none"
    cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32 = before


@pytest.mark.usefixtures("_own_cudnn_flags")
@pytest.mark.parametrize("interface", ["older", "newer"])
def test_cudnn_flags_inside_products_are_those_of_the_user(interface: str) -> None:
    cudnn = torch.backends.cudnn
    cudnn.deterministic, cudnn.benchmark = True, True
    if interface == "older":
        cudnn.allow_tf32 = False
    else:
        cudnn.conv.fp32_precision = "ieee"
    outside, network = cudnn_flags(), Recording(*classifier())
    laplace(network).fit(class_batches()).predict(inputs())
    assert network.found == {outside}
    assert cudnn_flags() == outside


@pytest.mark.usefixtures("_own_cudnn_flags")
def test_only_recurrent_layers_are_kept_from_cudnn() -> None:
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    outside = cudnn_flags()
    with differentiable(native_rnn=True, compiled=False, fold=True):
        assert cudnn_flags() == (False, *outside[1:])
    assert cudnn_flags() == outside


def test_inside_no_grad_the_fit_is_the_same() -> None:
    outside = laplace(classifier()).fit(class_batches()).predict(inputs()).variance
    with torch.no_grad():
        inside = laplace(classifier()).fit(class_batches()).predict(inputs()).variance
    assert torch.equal(inside, outside)


ERRORS: dict[str, Callable[[], BaseException]] = {
    "error": lambda: OSError("disk gone"),
    "Ctrl-C": KeyboardInterrupt,
    "out of memory": lambda: torch.OutOfMemoryError("no memory left"),
}


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize(("at_pass", "at_batch"), [(1, 1), (2, 3), (3, 2), (4, 3)])
def test_after_the_loader_raises(kind: str, at_pass: int, at_batch: int) -> None:
    model, error = normalised(), ERRORS[kind]()
    _hooked(model)
    la = laplace(model).fit(class_batches())
    earlier, before = la.predict(inputs()).variance, snapshot(model)
    loader = Interrupting(class_batches(), at_pass, at_batch, error)
    with pytest.raises(type(error)):
        la.fit(loader)
    assert loader.passes == at_pass
    assert_unchanged(model, before)
    assert torch.equal(la.predict(inputs()).variance, earlier)


@pytest.mark.parametrize("kind", ["error", "Ctrl-C"])
@pytest.mark.parametrize("at_call", [1, 2, 3, 5, 8, 11])
def test_after_the_network_raises(kind: str, at_call: int) -> None:
    error = ERRORS[kind]()
    model = Failing(at_call, error)
    before = snapshot(model)
    with pytest.raises((type(error), RuntimeError)):
        laplace(model).fit(class_batches())
    assert model._calls == at_call
    assert_unchanged(model, before)


@pytest.mark.parametrize("at_call", [1, 2, 3, 5, 8, 11])
def test_after_memory_ran_out_in_the_checks(at_call: int) -> None:
    model = Failing(at_call, torch.OutOfMemoryError("no memory left"))
    before = snapshot(model)
    with pytest.raises(torch.OutOfMemoryError, match="no memory left"):
        laplace(model).fit(class_batches())
    assert model._calls == at_call
    assert_unchanged(model, before)


@pytest.mark.parametrize("at_call", [14, 17, 20])
def test_after_memory_ran_out_once(at_call: int) -> None:
    model = Failing(at_call, torch.OutOfMemoryError("no memory left"))
    before = snapshot(model)
    report = laplace(model).fit(class_batches()).report_
    assert report.chunks is not None
    assert report.chunks["halvings"] == 1
    assert_unchanged(model, before)


def test_after_a_prediction_fails() -> None:
    model = Failing(10**9, OSError("broken"))
    la = laplace(model).fit(class_batches())
    before = snapshot(model)
    model._at = model._calls + 2
    with pytest.raises(OSError, match="broken"):
        la.predict(inputs())
    assert_unchanged(model, before)
    assert la.predict(inputs()).variance.shape == (24, 3)


def test_what_a_network_does_to_itself_in_forward_is_undone() -> None:
    class Careless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = normalised()

        def forward(self, x: Tensor) -> Tensor:
            outputs: Tensor = self.inner(x)
            self.inner[2].train()
            self.inner.register_forward_hook(lambda *_: None)
            return outputs

    model = Careless().eval()
    before = snapshot(model)
    laplace(model).fit(class_batches())
    assert_unchanged(model, before)
