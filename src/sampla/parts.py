"""Passes over data that lie in parts elsewhere: each is made there, part by part, and its sums are added up."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from sampla.core.data import Data
from sampla.features import Features
from sampla.likelihoods import Likelihood


@dataclass(frozen=True)
class _Pass:
    """A pass over a part of the data, made where that lies: its sums, and its products times the number of data."""

    model: type
    name: str
    args: tuple[Any, ...]
    features: Features
    likelihood: Likelihood
    exact: bool

    def __call__(self, data: Data) -> list[Tensor]:
        model = self.model(self.features, self.likelihood, data, exact=self.exact)
        sums = getattr(model, self.name)(*self.args)
        return [*sums, torch.tensor(model.ledger.products * data.num_data, dtype=torch.float64)]


def where_data_lie(sums: Callable[..., list[Tensor]]) -> Callable[..., list[Tensor]]:
    """Make a method of a model that sums over its data do so on each part, where data lie in parts elsewhere.

    Args:
        sums: a pass that is a sum over data, and counts what it costs in the model's ledger.
    """

    @wraps(sums)
    def spread(model: Any, *args: Any) -> list[Tensor]:
        if not model.data.in_parts:
            return sums(model, *args)
        own = tuple(each.clone() if isinstance(each, Tensor) else each for each in args)  # of a view all would be sent
        there = _Pass(type(model), sums.__name__, own, model.features, model.likelihood, model.exact)
        found: list[Tensor]
        *found, products = model.data.over_parts(there)
        model.ledger.products += float(products) / model.data.num_data
        return found

    return spread
