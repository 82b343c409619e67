"""Tiny networks, data and a full record of a module, for tests of behaviour (not of mathematics)."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sampla

FIXED = sampla.GPrior(1.0, learn=False)
"""No EM: the quickest fit there is."""

NAN = float("nan")

Batches = list[tuple[Any, Tensor]]


def classifier(seed: int = 0) -> nn.Module:
    """(n, 2) -> (n, 3) logits, 43 parameters, in evaluation mode."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 3)).eval()


def regressor(seed: int = 0) -> nn.Module:
    """(n, 2) -> (n, 1), in evaluation mode."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1)).eval()


def normalised(seed: int = 0) -> nn.Module:
    """A network with everything that could be touched: BatchNorm, dropout, frozen weights, kept grads, hooks."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3))
    x, y = inputs(), labels()
    torch.nn.functional.cross_entropy(model(x), y).backward()  # fills .grad and the running statistics
    model[0].bias.requires_grad_(False)
    model[4].bias.grad = None
    return model.eval()


def inputs(count: int = 24, seed: int = 1) -> Tensor:
    """(count, 2) float32."""
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(seed))


def labels(count: int = 24, seed: int = 1) -> Tensor:
    """(count,) classes 0, 1, 2 that the inputs explain."""
    return (inputs(count, seed).sum(1) > 0).long() + (inputs(count, seed)[:, 0] > 1).long()


def class_batches(change_x: Callable[[Tensor], Tensor] | None = None, change_y: Any = None) -> Batches:
    """Three batches of 8 data for ``classifier``; the functions may spoil inputs or targets."""
    x, y = inputs(), labels()
    x = change_x(x) if change_x else x
    y = change_y(y) if change_y else y
    return list(zip(x.split(8), y.split(8), strict=True))


def regression_batches(change_y: Any = None) -> Batches:
    """Three batches of 8 data for ``regressor``."""
    x = inputs()
    y = torch.sin(x.sum(1, keepdim=True))
    return list(zip(x.split(8), (change_y(y) if change_y else y).split(8), strict=True))


def spoiled(index: tuple[int, ...], value: float) -> Callable[[Tensor], Tensor]:
    """A function that puts one value into a copy of a tensor."""

    def change(tensor: Tensor) -> Tensor:
        copy = tensor.clone()
        copy[index] = value
        return copy

    return change


def laplace(model: nn.Module, likelihood: Any = "categorical", **settings: Any) -> sampla.LinearisedLaplace:
    """A quiet LinearisedLaplace with 4 samples and a fixed prior, its predictions of the posterior as it is."""
    chosen = {"prior": FIXED, "num_samples": 4, "progress": False, "width": "em", **settings}
    return sampla.LinearisedLaplace(model, likelihood, **chosen)


_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
)


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything of a module that a library could disturb, objects by identity and numbers by value."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {
        "tensors": [(name, id(t), t.detach().clone()) for name, t in tensors],
        "grads": [(name, id(p.grad), _copy(p.grad)) for name, p in model.named_parameters()],
        "requires_grad": [(name, p.requires_grad) for name, p in model.named_parameters()],
        "training": [(name, m.training) for name, m in model.named_modules()],
        "hooks": [(name, kind, list(getattr(m, kind).items())) for name, m in model.named_modules() for kind in _HOOKS],
        "attributes": [(name, sorted(vars(m))) for name, m in model.named_modules()],
    }


def _copy(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.clone()


def assert_unchanged(model: nn.Module, before: dict[str, Any]) -> None:
    """Compare with a snapshot taken before, naming the first thing that differs."""
    after = snapshot(model)
    for part, rows in before.items():
        assert len(rows) == len(after[part]), part
        for old, new in zip(rows, after[part], strict=True):
            same = [torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(old, new, strict=True)]
            assert all(same), f"{part} of {old[0]!r} changed"


def refused(la: sampla.LinearisedLaplace, loader: Any, error: type[Exception], match: str) -> None:
    """The fit fails with this message, leaving the network and an earlier fit's results as they were."""
    earlier = la.predict(inputs()).variance if la._posterior is not None else None
    before = snapshot(la.model)
    with pytest.raises(error, match=match):
        la.fit(loader)
    assert_unchanged(la.model, before)
    if earlier is None:
        with pytest.raises(RuntimeError, match="not fitted yet"):
            la.predict(inputs())
    else:
        assert torch.equal(la.predict(inputs()).variance, earlier)
        assert la.report_.num_data == 24
