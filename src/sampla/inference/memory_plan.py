"""What a fit will need of memory, before it starts: vectors of all parameters, and the activations of a product."""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from sampla.core.batch import Batch
from sampla.core.blocks import CHUNK
from sampla.core.memory import free_bytes
from sampla.inference.final import SEEN_PASSES
from sampla.inference.route import SEARCH, Route, choose_route
from sampla.inference.settings import EM, CurvatureAt
from sampla.inference.tuning import ChunkMemory, chunk_memory
from sampla.model import LinearModel
from sampla.priors import Prior
from sampla.solvers import BlockCG, Solver

_USUAL_ROWS = 64
"""Vectors that EM's Krylov space has at its end as a rule (24 to 64)."""
_USUAL_PASSES = 3
"""Passes of the final solve from that space."""
_CARRIED = 2
"""Rows of a product that answer a search for the mode: theta and a vector."""
_SINGLE = 6
"""Diagonals of M and A, the prior's scale, the network's own values, the mean and a spare."""
_GROWING, _MULTIPLIED = 5, 3
"""Blocks as wide as the Krylov space grows: the next rows, M times these, and their orthonormalisation. And what of it
is whole where processes hold slices of the space: the rows, these in the network's units, M times them."""
SOLVER_BLOCKS = 11
"""Blocks of K vectors of the final solve beside the noise, as counted while one ran: the right-hand side's prior part,
the guess with its M z, the iterate, residual and direction before and after a step, and what a step needs."""
_DRAWN, _WHITENED = 1, 4
"""Blocks beside a final solve without a shared Krylov space: noise of its own, and for the evidence right-hand sides
and guess in whitened coordinates."""
_DRAWING = 3
"""Blocks where the network is while the noise is drawn: the sum, a block of data, and its square."""

_PASSING, _WEIGHTS = 2, 2
"""Where the network is, if vectors live elsewhere: blocks of a pass, v and M v; the own values and a scale."""


@dataclass(frozen=True)
class Part:
    """Vectors of P that are held at the same time for one purpose."""

    what: str
    vectors: int


@dataclass(frozen=True)
class Nearby:
    """What a pass holds where the network is, if vectors of P live on another device."""

    device: torch.device
    vectors: int
    """Vectors of P that are there during a pass."""
    free: int | None
    """Bytes that can still be had there; None where the system does not tell."""


@dataclass(frozen=True)
class MemoryPlan:
    """Memory that a fit needs, in bytes; ``print`` it for the words."""

    num_data: int
    num_outputs: int
    """C, all outputs of one datum."""
    num_parameters: int
    num_samples: int
    dtype: torch.dtype
    device: torch.device
    parts: tuple[Part, ...]
    """What is held at the peak."""
    krylov_rows: int
    """Vectors in EM's Krylov space that ``parts`` count; 0 if there is none."""
    most_rows: int
    """Vectors that EM allows the space."""
    rows: int
    """Data that go through the network together."""
    columns: int
    """Vectors that do."""
    chunk: ChunkMemory
    """Activations and vectors of such a product, measured on the first batch."""
    scratch: int
    """Bytes of the float64 copies of which Gram matrices are made, a piece at a time."""
    free: int | None
    """Bytes that can still be had; None where the system does not tell."""
    nearby: Nearby | None = None
    """Where the network is, if that is not where the vectors are."""
    movable: bool = False
    """Whether the solver lets vectors live elsewhere."""
    spaces: int = 1
    """How many Krylov spaces are held at once: two where B moves, and the space of the last B serves the next."""
    more: int | None = None
    """Vectors of P held beyond these if EM's Krylov space grows as far as it may; None: those of one space."""
    data_bytes: int = 0
    """Bytes of all data."""
    data_stay: bool = False
    """Whether a fit keeps them where the network is, which is then no CPU."""
    processes: int = 1
    """How many processes the data are spread over, each of which holds all this, and of the data its part.

    Of EM's Krylov space, and of what is kept for new data, each holds a slice: ``parts`` count such vectors as so small
    a part of one."""
    beside: int = 1
    """How many of these share the memory of this machine."""

    @property
    def vector(self) -> int:
        """Bytes of one vector of P."""
        return self.num_parameters * torch.finfo(self.dtype).bits // 8

    @property
    def vectors(self) -> int:
        """Vectors of P held at the peak."""
        return sum(part.vectors for part in self.parts)

    @property
    def chunk_bytes(self) -> int:
        """Of one product."""
        return self.chunk(self.rows, self.columns)

    @property
    def total(self) -> int:
        """Bytes at the peak, as a rule, where the vectors are."""
        there = self.chunk_bytes + self._kept if self.nearby is None else 0
        return self.vectors * self.vector + there + self.scratch

    @property
    def _kept(self) -> int:
        """Bytes of the data where the network is."""
        return self.data_bytes if self.data_stay else 0

    @property
    def nearby_total(self) -> int:
        """Bytes at the peak where the network is, if vectors are elsewhere; else zero."""
        return 0 if self.nearby is None else self.nearby.vectors * self.vector + self.chunk_bytes + self._kept

    @property
    def at_most(self) -> int:
        """Bytes if EM's Krylov space grows as far as it may."""
        more = _slices(max(0, self.most_rows - self.krylov_rows), self.processes) if self.more is None else self.more
        return self.total + more * self.vector

    @property
    def fits(self) -> bool | None:
        """Whether ``total`` is free, and ``nearby_total`` too; None where that is not known."""
        if self._short is not None:
            return False
        return None if any(place.free is None for place in self._places) else True

    @property
    def _places(self) -> list["_Place"]:
        if self.nearby is None:
            return [_Place("", self._here, self.chunk_bytes * self._sharing, self.free)]
        near = _Place(f" on {self.nearby.device}", self.nearby_total, self.chunk_bytes, self.nearby.free)
        return [near, _Place("", self._here, 0, self.free)]

    @property
    def _sharing(self) -> int:
        """How many processes share the memory in which vectors are; accelerators are taken to have one each."""
        return self.beside if self.device.type == "cpu" else 1

    @property
    def _here(self) -> int:
        """Bytes at the peak of all processes that share it."""
        return self.total * self._sharing

    @property
    def _short(self) -> "_Place | None":
        """The first place where there is not enough, as far as is known."""
        return next((place for place in self._places if place.free is not None and place.need > place.free), None)

    def __str__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        lines = [
            f"a fit of {self.num_parameters:,} parameters (P) to {self.num_data:,} data (N) of {self.num_outputs:,} "
            f"outputs (C), with {self.num_samples} samples (K)",
            f"one vector   of P in {kind} on {self.device}: {_size(self.vector)}",
            *(f"  {part.vectors:5,} of    {part.what}: {_size(part.vectors * self.vector)}" for part in self.parts),
            f"a product    of {self.rows} data x {self.columns} vectors: {_size(self.chunk_bytes)}, measured; "
            f"Gram matrices: {_size(self.scratch)}",
            *self._data(),
            f"at the peak  {_size(self.total)}" + self._more(),
            *self._spread(),
            f"free         {_known(self.free)}",
            *self._there(),
            f"so           {self._verdict()}",
        ]
        return "\n".join(lines)

    def _spread(self) -> list[str]:
        if self.processes == 1:
            return []
        where = f", {self.beside} of them on this machine: {_size(self._here)}" if self._sharing > 1 else ""
        cut = ", and of EM's Krylov space a slice" if self.krylov_rows else ""
        return [f"processes    {self.processes}, each of which holds all this{cut}{where}"]

    def _data(self) -> list[str]:
        place = self.device if self.nearby is None else self.nearby.device
        if place.type == "cpu":
            return []
        size = f"data         {_size(self.data_bytes)}"
        if self.data_stay:
            return [f"{size}, kept on {place} after the second reading"]
        return [f"{size}, more than an eighth of what is free on {place}: every pass reads the loader"]

    def _there(self) -> list[str]:
        if self.nearby is None:
            return []
        return [
            f"on {self.nearby.device!s:9} {self.nearby.vectors} vectors of P during a pass, and the product: "
            f"{_size(self.nearby_total)}; free: {_known(self.nearby.free)}"
        ]

    def _more(self) -> str:
        if self.at_most == self.total:
            return ""
        return f"; {_size(self.at_most)} if EM's Krylov space needs all of its {self.most_rows} vectors"

    def _verdict(self) -> str:
        if self._short is not None:
            return f"it does NOT fit{self._short.where}: {self._remedy(self._short)}"
        if self.free is None or self.fits is None:
            return "compare the peak with what the machine has"
        if self.at_most * self._sharing <= self.free:
            return "it fits"
        room = (self.free - self._here) * self.processes
        rows = self.krylov_rows + room // (self.spaces * self.vector * self._sharing)
        return f"it fits as a rule; em=EM(max_rows={rows}) makes sure"

    def _remedy(self, place: "_Place") -> str:
        if place.product > place.need / 2:
            rows, columns = max(1, self.rows // 4), max(1, self.columns // 2)
            return f"pass chunks=({rows}, {columns}) or less (a fit that runs out halves them by itself)"
        wide = _slices(self.krylov_rows, self.processes) > self.vectors / 2 and not place.where
        first = "lower EM(max_rows=...)" if wide else "lower num_samples"
        if self.device.type != "cpu" and self.movable:
            first = f"vectors_on='cpu', {first}"
        return f"{first}, or fewer parameters=[...]"


@dataclass(frozen=True)
class _Place:
    """A memory: what of it is needed, how much of that by a product, and what is free."""

    where: str
    need: int
    product: int
    free: int | None


def plan_memory(
    model: LinearModel,
    prior: Prior,
    solver: Solver[Any],
    em: EM,
    num_samples: int,
    *,
    curvature_at: CurvatureAt = "network",
    log_evidence: bool | None = None,
    updatable: bool = False,
) -> MemoryPlan:
    """Count what ``infer`` will hold, and measure one product.

    Args:
        model: features, likelihood and data; read once.
        prior: as for ``infer``.
        solver: as for ``infer``.
        em: as for ``infer``.
        num_samples: K.
        curvature_at: as for ``infer``.
        log_evidence: as for ``infer``.
        updatable: as for ``infer``.

    Raises:
        ValueError: if EM(method="krylov") is asked for what no single Krylov space serves.
    """
    first = None
    for batch in model.data:
        first = batch if first is None else first
    num_data, ranks = model.data.num_data, model.data.ranks
    outputs, most_rows, chunk = _measured(model, first)
    model.chunks.allow_for(outputs)
    size, like, likelihood = model.num_parameters, model.features.like, model.likelihood
    bound = prior.bind(model.features.layout, torch.ones(size).to(like))
    route = choose_route(
        model, bound, solver, em, num_data * outputs, curvature_at=curvature_at, log_evidence=log_evidence
    )
    usual, most = _space_rows(route, num_data * outputs + num_samples, size, likelihood.learns_noise)
    few, means = min(em.num_samples, num_samples), int(likelihood.is_quadratic)
    searches = (
        SEARCH if route.learns and not likelihood.is_quadratic else 0,
        SEARCH if route.searches_beside and (route.learns or route.log_evidence) else 0,
    )
    shared = route.e_step == "krylov" and not route.moves_curvature
    beside = 0 if shared else _WHITENED if route.whitened_space else _DRAWN
    spaces = 2 if route.one_space and route.learns and route.moves_curvature else 1
    seen = min(em.rows_within(like, size) // 2, min(_USUAL_PASSES, SEEN_PASSES) * (num_samples + means))
    seen = 2 * seen if updatable and route.solver_uses_space else 0
    spread = (1, 1) if ranks is None else (ranks.size, ranks.beside)
    parts, at_most = (
        _largest(num_samples, few, means, each, searches, beside, spaces, seen, spread[0]) for each in (usual, most)
    )
    carried = [(few, _CARRIED if searches[0] else 0), (num_samples + means, _CARRIED if searches[1] else 0)]
    columns = max(len(part) for each in carried for part in model.chunks.ranges(*each))
    rows = min(model.chunks.rows(num_samples + means), most_rows)
    home, near = like.device, model.features.device
    passing = max(_DRAWING * num_samples, _PASSING * (num_samples + means))
    return MemoryPlan(
        num_data, outputs, size, num_samples, like.dtype, home, parts, usual, most,
        rows, columns, chunk, 8 * min(CHUNK, size * (usual + num_samples)),
        free_bytes(home), None if near == home else Nearby(near, passing + _WEIGHTS, free_bytes(near)),
        isinstance(solver, BlockCG), spaces, sum(p.vectors for p in at_most) - sum(p.vectors for p in parts),
        model.data.nbytes, model.data.stays, *spread,
    )  # fmt: skip


def _measured(model: LinearModel, first: Batch | None) -> tuple[int, int, ChunkMemory]:
    """Outputs of a datum, data of a batch, what a product holds; where there are no data, as another process says."""
    own: Any = None
    if first is not None:
        outputs = model.features.linearise(next(first.minibatches(1)).inputs).outputs[0].numel()
        own = [outputs, first.size, asdict(chunk_memory(model.features, first))]
    if model.data.ranks is not None:
        said = model.data.ranks.gathered("plan", own)
        own = next(each for each in said if each is not None) if own is None else own
    assert own is not None, "data have been read"
    return own[0], own[1], ChunkMemory(**own[2])


def _space_rows(route: Route, reachable: int, size: int, learns_noise: bool) -> tuple[int, int]:
    """Vectors in the Krylov space at the end of a fit as a rule, and at most."""
    if route.exact_traces and (route.learns or route.log_evidence):
        return route.largest_rank, route.largest_rank
    most = min(route.max_rows, size) if route.one_space or route.whitened_space else 0
    usual = min(most, _USUAL_ROWS, reachable)
    return usual, max(most, route.largest_rank) if learns_noise and route.exact_if_needed else most


def _largest(
    samples: int, few: int, means: int, space: int, searches: tuple[int, int], beside: int, spaces: int,
    seen: int, count: int,
) -> tuple[Part, ...]:  # fmt: skip
    """What each of so many processes holds when most is held."""
    wide, block = samples + means, few + means
    growing = max(_slices(_GROWING * block, count), _MULTIPLIED * block + _slices(block, count))
    whole, own = f", a slice of {space:,} vectors" if count > 1 else "", _slices(space, count)
    always = (Part("noise of the right-hand sides", samples), Part("diagonals, scales and the mean", _SINGLE))
    learning = (
        *always, Part("EM's Krylov space" + whole, own), Part("what makes it grow", growing),
        Part("the space and the noise before B moved", (spaces - 1) * (own + few)),
        Part("search for the mode: secant pairs", searches[0]),
    )  # fmt: skip
    solving = (
        *always, Part("EM's Krylov space, as preconditioner" + whole, own),
        Part("final solve: right-hand side, guess, iterate, residual, directions", SOLVER_BLOCKS * wide),
        Part("its first products, which new data can use", _slices(seen, count)),
        Part("beside it: noise drawn again, right-hand sides in other coordinates", beside * wide),
        Part("beside it: the last search for the mode", searches[1]),
    )  # fmt: skip
    parts = max(learning, solving, key=lambda phase: sum(part.vectors for part in phase))
    return tuple(part for part in parts if part.vectors)


def _slices(vectors: int, count: int) -> int:
    """Whole vectors that take the memory of a slice of each of these, where there are so many slices."""
    return -(-vectors // count)


def _known(size: int | None) -> str:
    return "not known here" if size is None else _size(size)


def _size(size: float) -> str:
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}" if size < 1000 * factor else f"{size / factor:,.0f} {unit}"
    return f"{size:.0f} bytes"
