"""A network that is no longer the one of the fit is noticed, and a posterior goes to other devices without it."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

import sampla
from helpers import assert_unchanged, class_batches, classifier, inputs, laplace, normalised, snapshot


def trained_on(model: nn.Module) -> None:
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for x, y in class_batches():
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()


def averaged(model: nn.Module) -> None:
    """As moving averages of weights are put in: past torch's own counters of versions."""
    for p in model.parameters():
        p.data.mul_(0.99)


def loaded(model: nn.Module) -> None:
    model.load_state_dict(classifier(seed=3).state_dict())


def replaced(model: nn.Module) -> None:
    model[2].weight = nn.Parameter(model[2].weight.detach() + 1)


def rounded(model: nn.Module) -> None:
    model.half().float()


CHANGES: dict[str, Callable[[nn.Module], None]] = {
    "trained on": trained_on, "averaged": averaged, "loaded": loaded, "replaced": replaced, "rounded": rounded,
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_weights_that_have_changed_are_noticed(change: str) -> None:
    model = classifier()
    la = laplace(model).fit(class_batches())
    functions = la.functions(2)
    CHANGES[change](model)
    match = r"expected the network that this posterior was fitted to, with the weights .* changed: .*Fit again, or load"
    for ask in (
        lambda: la.predict(inputs()),
        lambda: la.predict(class_batches()),
        lambda: la.predict(inputs(), certificate=True),
        lambda: functions(inputs()),
        lambda: functions[1](inputs()),
        lambda: la.leave_one_out(class_batches()),
        lambda: la.influence(class_batches(), class_batches()[0]),
    ):
        with pytest.raises(ValueError, match=match):
            ask()
    la.fit(class_batches())
    assert la.predict(inputs()).mean.equal(model(inputs()).detach())


def test_statistics_of_normalisation_that_have_changed_are_noticed() -> None:
    model = normalised()
    la = laplace(model).fit(class_batches())
    model.train()
    model(inputs())
    model.eval()
    match = (
        r"with the running statistics of normalisation .*: '1.running_mean', '1.running_var'. It was called in train"
    )
    with pytest.raises(ValueError, match=match):
        la.predict(inputs())


class Cached(nn.Module):
    """Keeps what no file has, counts batches, and has a weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm = classifier(), nn.BatchNorm1d(3)
        self.again = self.inner
        self.register_buffer("cache", torch.zeros(2), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.inner(x))


def test_what_is_no_change_passes() -> None:
    model = Cached().eval()
    la = laplace(model).fit(class_batches())
    mean = la.predict(inputs()).mean
    model.cache += 1
    model.norm.num_batches_tracked += 1
    model.double()
    model.requires_grad_(False)
    assert torch.equal(la.predict(inputs()).mean, mean)
    model.float()
    assert torch.equal(la.predict(inputs()).mean, mean)
    parent = nn.Sequential(model)
    parent.eval()
    assert torch.equal(la.predict(inputs()).mean, mean)
    with torch.no_grad():
        model.again[0].bias[0] += 1
    with pytest.raises(ValueError, match=r"1 tensor has changed: 'inner.0.bias'"):
        la.predict(inputs())


def test_a_loaded_posterior_notices_too(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = classifier()
    laplace(model).fit(class_batches()).save(tmp_path / "posterior.safetensors")
    la = sampla.LinearisedLaplace.load(tmp_path / "posterior.safetensors", model)
    la.predict(inputs())
    averaged(model)
    with pytest.raises(ValueError, match="4 tensors have changed"):
        la.predict(inputs())


def test_a_posterior_goes_to_another_device_without_the_network() -> None:
    model = normalised()
    before = snapshot(model)
    la = laplace(model).fit(class_batches())
    assert la.to("cpu") is la
    assert la.leave_one_out(class_batches()).log_prob.shape == (24,)
    posterior = la._posterior
    assert posterior is not None
    moved = posterior.to(torch.device("meta"))
    assert moved.samples.is_meta
    assert moved.features.device == moved.features.like.device == torch.device("meta")
    assert all(t.is_meta for t in (*moved.features.point.values(), *moved.features.constants.values()))
    mean, deviations = moved.features.own_outputs(torch.empty(4, 2, device="meta")), moved.samples
    assert (mean.shape, mean.is_meta) == ((4, 3), True)
    pushed = moved.features.linearise(torch.empty(4, 2, device="meta")).jvp(deviations)
    assert (pushed.shape, pushed.is_meta) == ((4, 4, 3), True)
    kept = posterior.to(torch.device("meta"), torch.device("cpu"))
    assert not kept.samples.is_meta
    assert_unchanged(model, before)
    with pytest.raises(ValueError, match="expected device as a device that is here"):
        la.to("nowhere")


def test_a_copy_of_the_network_keeps_its_posterior() -> None:
    model = classifier()
    la = laplace(copy.deepcopy(model)).fit(class_batches())
    mean = la.predict(inputs()).mean
    trained_on(model)
    assert torch.equal(la.predict(inputs()).mean, mean)
