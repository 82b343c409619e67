"""A fit to data spread over processes: what must be the same on all of them, and what does not sum over them."""

from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from sampla.core.checks import require
from sampla.core.data import Batch
from sampla.distributed import Ranks
from sampla.features import NetworkFeatures
from sampla.laplace.guards import check_network
from sampla.solvers import BlockCG, Dense, Solver


def check_spread(solver: Solver[Any], precision: str) -> None:
    """Refuse settings of which the parts of a fit would not follow from sums over all data.

    Raises:
        ValueError: naming the setting.
    """
    require(
        isinstance(solver, (BlockCG, Dense)), 'solver="block-cg" or "dense" for data spread over processes',
        f"{solver!r}", "The others take steps on a few data at a time, or hold numbers for every output.",
    )  # fmt: skip
    require(
        precision != "auto", 'precision="full" or "bfloat16" for data spread over processes', '"auto"',
        "Each process would measure for itself, and they might choose differently.",
    )  # fmt: skip


def check_together(ranks: Ranks, settings: dict[str, Any]) -> None:
    """See that every process was given the same network and settings.

    Args:
        ranks: the processes.
        settings: of the fit, by name.

    Raises:
        RankError: on every process, naming what differs.
    """
    ranks.agree("settings", {**settings, "torch": torch.__version__, "sampla": _installed()})


def _installed() -> str:
    try:
        return version("sampla")
    except PackageNotFoundError:  # a checkout on the path
        return "not installed"


def checked_on_all(features: NetworkFeatures, first: Batch | None, ranks: Ranks | None) -> float | None:
    """``check_network`` on this process's first batch, if there is one; the network is then lifted on all or none."""
    adjoint = None if first is None else check_network(features, first)
    if ranks is None or not any(ranks.gathered("types", features.products.lifted)) or features.products.lifted:
        return adjoint
    features.lift()
    return None if first is None else check_network(features, first)
