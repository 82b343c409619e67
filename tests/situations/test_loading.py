"""A posterior and its network in other clothes: compiled, wrapped, in another type; and fits in inference mode."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sampla
from helpers import class_batches, classifier, inputs, laplace, regression_batches, regressor
from sampla.core import checkpoint
from sampla.core.hashes import earlier_fingerprint


def _compiled(model: nn.Module) -> nn.Module:
    compiled: Any = torch.compile(model, backend="eager")
    return compiled


def _partly_compiled(model: nn.Module) -> nn.Module:
    model[0] = _compiled(model[0])
    return model


CLOTHES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "plain": lambda model: model,
    "compiled": _compiled,
    "a part compiled": _partly_compiled,
    "DataParallel": lambda model: nn.DataParallel(model).eval(),
    "compiled and DataParallel": lambda model: _compiled(nn.DataParallel(model)).eval(),
}


@pytest.mark.parametrize("loaded_on", CLOTHES)
@pytest.mark.parametrize("fitted_on", ["plain", "compiled", "a part compiled", "DataParallel"])
def test_a_posterior_loads_whatever_is_wrapped_around_the_network(
    tmp_path: Path, fitted_on: str, loaded_on: str
) -> None:
    la = laplace(CLOTHES[fitted_on](classifier())).fit(class_batches())
    assert la.names == ["0.weight", "0.bias", "2.weight", "2.bias"]
    la.save(tmp_path / "posterior")
    loaded = sampla.LinearisedLaplace.load(tmp_path / "posterior", CLOTHES[loaded_on](classifier()))
    assert torch.equal(loaded.predict(inputs()).variance, la.predict(inputs()).variance)
    with pytest.raises(ValueError, match="the same architecture with other weights"):
        sampla.LinearisedLaplace.load(tmp_path / "posterior", CLOTHES[loaded_on](classifier(seed=1)))


@pytest.mark.parametrize("name", ["0.weight", "_orig_mod.0.weight", "*0.weight"])
def test_parameters_of_a_compiled_network_are_found_under_both_names(name: str) -> None:
    assert laplace(_compiled(classifier()), parameters=[name]).names == ["0.weight"]
    assert laplace(_compiled(classifier()), parameters="last-layer").names == ["2.weight", "2.bias"]


def _rounded() -> nn.Module:
    """A network whose weights float16 and bfloat16 hold without rounding."""
    return classifier().bfloat16().half().bfloat16().float()


TYPES: dict[str, tuple[Callable[[], nn.Module], torch.dtype, str]] = {
    "double": (classifier, torch.float64, ""),
    "half": (classifier, torch.float16, "other weights in float16, where the file's are in float32.*fewer digits"),
    "bfloat16": (classifier, torch.bfloat16, "other weights in bfloat16, where the file's are in float32"),
    "half, weights that it holds": (_rounded, torch.float16, ""),
}


@pytest.mark.parametrize("old_file", [False, True])
@pytest.mark.parametrize("name", TYPES)
def test_a_posterior_loads_on_a_copy_of_another_type_with_the_same_weights(
    tmp_path: Path, name: str, old_file: bool
) -> None:
    make, dtype, refusal = TYPES[name]
    path = tmp_path / "posterior"
    la = laplace(make()).fit(class_batches())
    la.save(path)
    if old_file:
        tensors, facts = checkpoint.load(path)
        checkpoint.save(path, tensors, {key: value for key, value in facts.items() if key != "dtypes"})
    if refusal:
        with pytest.raises(ValueError, match=refusal):
            sampla.LinearisedLaplace.load(path, make().to(dtype))
        return
    found = sampla.LinearisedLaplace.load(path, make().to(dtype)).predict(inputs().to(dtype)).variance
    expected = la.predict(inputs()).variance
    assert found.dtype == torch.promote_types(dtype, torch.float32)  # in which coarser networks are linearised
    assert torch.allclose(found.double(), expected.double(), rtol=50 * torch.finfo(dtype).eps + 1e-5)


def test_a_file_of_an_earlier_version_with_names_of_a_compiled_network(tmp_path: Path) -> None:
    path, compiled = tmp_path / "posterior", _compiled(classifier())
    la = laplace(compiled).fit(class_batches())
    la.save(path)
    tensors, facts = checkpoint.load(path)
    names = [f"_orig_mod.{name}" for name in facts["names"]]
    old = {**facts, "names": names, "network": earlier_fingerprint(compiled.state_dict())}
    del old["dtypes"]
    checkpoint.save(path, tensors, old)
    loaded = sampla.LinearisedLaplace.load(path, compiled)
    assert torch.equal(loaded.predict(inputs()).variance, la.predict(inputs()).variance)


Case = tuple[Callable[[], nn.Module], str, Callable[[], Any]]
NETWORKS: dict[str, Case] = {
    "classes": (classifier, "categorical", class_batches),
    "regression": (regressor, "gaussian", regression_batches),
    "double reverse mode": (
        lambda: nn.Sequential(nn.Unflatten(1, (2, 1)), nn.GRU(1, 3, batch_first=True)).eval(), "categorical",
        lambda: [(x, y[:, None].expand(-1, 2)) for x, y in class_batches()],
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::sampla.ConvergenceWarning")
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_fit_in_inference_mode_is_the_same(
    tmp_path: Path, name: str, mode: Callable[[], AbstractContextManager[Any]]
) -> None:
    make, likelihood, data = NETWORKS[name]

    def fitted() -> list[torch.Tensor]:
        torch.manual_seed(0)
        model, batches = make(), [(x * 1, y * 1) for x, y in data()]  # made in that mode too
        settings = {"prior": "isotropic", "solver": "block-cg", "output": 0 if "GRU" in str(model) else None}
        la = laplace(model, likelihood, **settings).fit(batches)
        la.plan(batches)
        la.save(tmp_path / "posterior")
        loaded = sampla.LinearisedLaplace.load(tmp_path / "posterior", model)
        predictions = [each.predict(inputs() * 1) for each in (la, loaded)]
        return [
            la.prior_precision_,
            *(p.variance for p in predictions),
            predictions[0].log_prob(torch.cat([y for _, y in batches])),
        ]

    expected = fitted()
    with mode():
        found = fitted()
        assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
        assert not torch.is_grad_enabled()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
