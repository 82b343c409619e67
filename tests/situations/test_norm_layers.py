"""Normalisation layers that torch does not know: found by name and shape, listed, and the user's to put back."""

import pytest
import torch
from torch import Tensor, nn

import sampla
from cases import randn
from helpers import labels
from sampla.features import select_parameters


class LlamaRMSNorm(nn.Module):
    """As in the transformers library: Llama, Qwen, Gemma, Mistral, and under another name T5 and Mamba."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


class LayerNorm2d(LlamaRMSNorm):
    """ConvNeXt's, with parameters as (C, 1, 1)."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.weight, self.bias = nn.Parameter(torch.ones(size, 1, 1)), nn.Parameter(torch.zeros(size, 1, 1))


class ScaleNorm(LlamaRMSNorm):
    """One number."""

    def __init__(self) -> None:
        super().__init__(1)
        self.weight = nn.Parameter(torch.tensor(1.0))


class Bare(nn.Linear):
    """A layer by any other name, here with a vector beside its matrix."""


class NormalHead(nn.Module):
    """A distribution, not a normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.log_std = nn.Parameter(torch.zeros(3))


class NormedLinear(nn.Linear):
    """Has a matrix of its own."""


class PreNormBlock(nn.Module):
    """Has layers of its own beside the vector."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma, self.inner = nn.Parameter(torch.ones(4)), nn.Linear(4, 4)


RECOGNISED = {
    "LlamaRMSNorm": lambda: LlamaRMSNorm(4),
    "T5LayerNorm": lambda: type("T5LayerNorm", (LlamaRMSNorm,), {})(4),
    "FrozenBatchNorm2d": lambda: type("FrozenBatchNorm2d", (LlamaRMSNorm,), {})(4),
    "LayerNorm2d": lambda: LayerNorm2d(4),
    "ScaleNorm": ScaleNorm,
}
LEFT_ALONE = {
    "a layer": lambda: Bare(4, 4),
    "a distribution": NormalHead,
    "a matrix": lambda: NormedLinear(4, 4),
    "a block": PreNormBlock,
    "weight_norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
    "weight_norm, as it was": lambda: old(nn.utils.weight_norm),
    "spectral_norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)),
    "spectral_norm, as it was": lambda: old(nn.utils.spectral_norm),
}


def old(parametrisation: object) -> nn.Module:
    """The old form, which warns in some versions of torch."""
    with pytest.warns(FutureWarning) if parametrisation is nn.utils.weight_norm else torch.no_grad():
        return parametrisation(nn.Linear(4, 4))  # type: ignore[operator]


@pytest.mark.parametrize("name", RECOGNISED)
def test_a_layer_called_norm_that_has_vectors_only_is_left_out_with_the_reason(name):
    model = nn.Sequential(nn.Linear(2, 4), RECOGNISED[name]())
    names, excluded = select_parameters(model)
    assert names == ["0.weight", "0.bias"]
    assert set(excluded.values()) == {f"normalisation layer (by its name {name!r})"}
    assert select_parameters(model, "last-layer")[0] == ["0.weight", "0.bias"]
    assert select_parameters(model, ["1.*"])[0] == list(excluded)


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_what_only_sounds_like_one_stays(name):
    model = LEFT_ALONE[name]()
    names, excluded = select_parameters(model)
    assert names == [n for n, _ in model.named_parameters()]
    assert excluded == {}


def test_the_report_says_how_it_was_told_and_error_bars_do_not_depend_on_the_scale_before_it():
    """Why they are left out, and that the user may put them back."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 6), LlamaRMSNorm(6), nn.Tanh(), nn.Linear(6, 3)).double().eval()
    loader, new = [(randn(24, 2), labels())], randn(5, 2, seed=3)

    def fit(parameters: object = None) -> sampla.LinearisedLaplace:
        prior = sampla.GPrior(1.0, learn=False)
        settings = {"num_samples": 8, "progress": False}
        return sampla.LinearisedLaplace(net, "categorical", prior, parameters, **settings).fit(loader)

    first = fit()
    assert first.report_.excluded_parameters == {"1.weight": "normalisation layer (by its name 'LlamaRMSNorm')"}
    assert "1 parameter tensors: normalisation layer (by its name 'LlamaRMSNorm')" in str(first.report_)
    assert "1.weight" in fit(["*"]).samples_
    before = first.predict(new).variance
    with torch.no_grad():
        net[0].weight *= 100
        net[0].bias *= 100
    torch.testing.assert_close(fit().predict(new).variance, before, rtol=1e-3, atol=0)
