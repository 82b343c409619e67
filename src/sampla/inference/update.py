"""New data for a posterior that there is: the posterior of all data, from what the fit to the old ones has left.

A sample z of the old data D solves H z = b. With new data D'

    (H + N) z' = b + sum_{n in D'} phi_n' S_n xi_n,    N = sum_{n in D'} phi_n' B_n phi_n,

is a sample of the posterior of both, exactly: its right-hand side has the covariance of H + N
(docs/method.md, section 2). The noise of the old data is kept, that of the new ones is keyed by their positions behind
the old: one fit to all of them would have drawn the same. So z is where the solve starts, with M z known, a residual in
the range of N, and what M has been multiplied with before as preconditioner. Reading the new data alone tells N z; the
solve reads all.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import torch
from torch import Tensor

from sampla.core.checks import one_of_each, require
from sampla.core.data import CheckedLoader
from sampla.inference.evidence import effective_dimension
from sampla.inference.infer import finished, maximised, solved
from sampla.inference.krylov import krylov_space_beside
from sampla.inference.route import choose_route
from sampla.inference.sampled_step import SampledEStep
from sampla.inference.settings import EM
from sampla.inference.state import EMState, Inference, Kept, Task
from sampla.model import Ledger, LinearModel, NoiseDraw
from sampla.solvers import Memory, Mode, Solver, Start
from sampla.survey import Survey

_MOST, _LEAST = 2.0, 4.0
"""What gamma of the samples is multiplied by at most, or divided, and gamma from which it is."""


@dataclass(frozen=True)
class Updated:
    """What an update leaves behind."""

    inference: Inference
    products: float
    """With M of all data, spent on it: those with N count as the part of all data that are new."""


def updated(
    inference: Inference | None,
    new: CheckedLoader,
    solver: Solver[Any],
    *,
    seed: int,
    em: EM,
    tolerance: float,
    max_passes: int,
    log_evidence: bool | None,
    mode: Tensor | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Updated:
    """The posterior of the old data and the new.

    EM goes on from the old hyperparameters, with all K samples, until they have settled again; what the prior says
    beside them, such as a g-prior's scales, stays.

    Args:
        inference: what the fit, or an earlier call, has left behind; None, of a posterior from a file, is refused.
        new: the new data, made by ``CheckedLoader.behind``.
        solver, seed, em, tolerance, max_passes: of the fit.
        log_evidence: whether to estimate log p(y) of all data.
        mode: (P,) the linear model's less the prior's mean, if it is known and the inference does not have it.
        say: called with one line at every stage.

    Raises:
        ValueError: for no fit, data that the fit has had, or new data that say something about parameters that the
            prior has taken out.
    """
    kept = kept_of(inference)
    assert inference is not None
    own, prior = inference.model, inference.prior
    old, fresh = own.data, LinearModel(own.features, own.likelihood, new, Ledger(), own.chunks, exact=True)
    assert isinstance(old, CheckedLoader)
    say("checking the new data")
    raw = fresh.replaced(features=own.features.unscaled()[0])
    survey = _both(kept.survey, raw.survey())
    old.require_new(new)
    say("drawing their noise")
    data_part, diagonal = _drawn(raw, kept)
    _require_alive(inference, diagonal)
    data = old.joined(new)
    share = new.num_data / data.num_data
    start, followed = _start(inference, fresh), _mode(inference, fresh, mode, share)
    count = len(inference.samples)
    em = replace(em, num_samples=count, method="samples", solve_tolerance=min(em.solve_tolerance, tolerance))
    route = choose_route(fresh, prior, solver, em, survey.numbers, log_evidence=bool(log_evidence))
    space = None
    if route.exact_traces and route.learns and kept.sketch is not None and kept.sketch.whole:
        say("what the new data add to the range of the old")
        space = krylov_space_beside(kept.sketch, fresh, count)
    ledger = Ledger(own.ledger.products + share * fresh.ledger.products)
    model = LinearModel(own.features, own.likelihood, data, ledger, own.chunks, exact=True)
    draw = NoiseDraw(
        kept.data_part + data_part * prior.scale, inference.posed.diagonal + diagonal * prior.scale.square()
    )
    task = Task(
        solver, em, seed, count, survey, draw, tolerance, max_passes, route, say, keeps=True, seeds=kept.seeds,
        sketch=kept.sketch, space=space, gamma_factor=None if route.exact_traces else _gamma_factor(inference),
    )  # fmt: skip
    state = EMState(replace(prior, guessed=False), model, start, followed)
    e_step = SampledEStep(task, model)
    with data.kept_meanwhile(), one_of_each(stacklevel=5):
        found = solved(task, *finished(e_step, maximised(e_step, state)))
    return Updated(found, ledger.products - own.ledger.products)


def kept_of(inference: Inference | None) -> Kept:
    """What a fit has kept for new data.

    Raises:
        ValueError: if there is none, saying why.
    """
    require(
        inference is not None, "a posterior that was fitted in this process, to add data to",
        "one from a file, or moved by to()",
        "A file holds no training data, and samples alone tell the old posterior only roughly: fit all data.",
    )  # fmt: skip
    assert inference is not None
    require(
        inference.kept is not None,
        'a fit whose old data can be gone on with: solver="block-cg" or "dense", the curvature at the network',
        "another one", "Fit all data once more.",
    )  # fmt: skip
    assert inference.kept is not None
    return inference.kept


def _both(old: Survey, new: Survey) -> Survey:
    """What a first look at all data would have told: everything is a sum over them."""

    def total(first: Tensor | None, second: Tensor | None) -> Tensor | None:
        return None if first is None or second is None else first + second

    return Survey(
        old.num_data + new.num_data, old.outputs + new.outputs, old.entries + new.outputs,
        total(old.residual, new.residual), total(old.target, new.target), old.numbers + new.numbers,
        old.targets + new.targets,
    )  # fmt: skip


def _drawn(raw: LinearModel, kept: Kept) -> tuple[Tensor, Tensor]:
    """(K, P) the new data's part of the samples' right-hand sides, and (P,) of diag M, in the parameters' own units."""
    draws = [raw.draw_noise(seed, number) for seed, number in kept.seeds]
    sizes = [len(each.data_part) for each in draws]
    diagonal = sum((size * each.diagonal for size, each in zip(sizes, draws, strict=True)), torch.zeros(()))
    return torch.cat([each.data_part for each in draws]), diagonal / sum(sizes)


def _require_alive(inference: Inference, diagonal: Tensor) -> None:
    """Refuse new data that inform parameters which the prior has taken out, because the old ones did not."""
    where = ((inference.prior.scale == 0) & (diagonal != 0)).nonzero().flatten()
    name = "" if not len(where) else _tensor_at(inference, int(where[0]))
    require(
        not len(where), "new data that inform the parameters that the old ones did",
        f"some that inform {name!r} too, which the g-prior has taken out", "Fit all data once more.",
    )  # fmt: skip


def _tensor_at(inference: Inference, place: int) -> str:
    layout = inference.model.features.layout
    ends = torch.tensor(list(layout.sizes)).cumsum(0)
    return layout.names[int(torch.searchsorted(ends, place, right=True))]


def _gamma_factor(inference: Inference) -> Tensor | None:
    """(G,) gamma as EM has it, alpha |mode|^2 at its fixed point, over that of the samples at the same hyperparameters.

    The same samples' gamma of all data is off by the same factor, as a rule: it is made of the same noise. So alpha
    moves by what the new data say, and not from one estimate's error to another's.
    """
    prior, mean = inference.prior, inference.mean_from_prior
    if mean is None or not prior.learn:
        return None
    found = effective_dimension(inference.solution, len(inference.samples), prior)[0]
    known = prior.precision * prior.group_sum(_in_units(mean, prior.scale).square())
    factor = (known / found.clamp_min(_LEAST)).clamp(1 / _MOST, _MOST)
    return torch.where(prior.learnt & (found > _LEAST) & (known > _LEAST), factor, 1)


def _in_units(theta: Tensor, scale: Tensor) -> Tensor:
    """theta in the coordinates of the prior's scale; zero where that is zero."""
    return torch.where(scale > 0, theta / scale.where(scale > 0, 1), 0)


def _start(inference: Inference, fresh: LinearModel) -> Start:
    """The old samples, and the mean behind them, with their products with the M of all data."""
    solution = inference.solution
    image = solution.curvature_value + fresh.curvature_product(solution.value)
    return Start(solution.value.clone(), image, curvature_exact=solution.curvature_exact)


def _mode(inference: Inference, fresh: LinearModel, known: Tensor | None, share: float) -> Mode | None:
    """The old linear mode, from which that of all data is searched; None where none is known or wanted.

    What the search for it has learnt goes on: the gradient is exact with that of the new data's loss, and secants of
    the loss are as much longer as there are more data.

    Args:
        inference: of the old data.
        fresh: the model of the new data alone.
        known: (P,) the mode, if it is not the inference's.
        share: of the new data in all.
    """
    own, kept = inference.mean_from_prior, inference.kept
    mean = known if own is None else own
    if mean is None or inference.model.likelihood.is_quadratic:
        return None
    mode = None if kept is None else kept.mode
    if mode is None or mode.memory is None:
        value = _in_units(mean, inference.prior.scale)[None] if mode is None else mode.value
        return Mode(value, inf, inf, 0, 0.0, False, inf)
    memory, (loss, gradient) = mode.memory, fresh.loss_gradient(mode.value)
    pairs = []
    for step, change in memory.pairs:
        prior = memory.precision * step
        pairs.append((step, (change - prior) / (1 - share) + prior))
    following = Memory.of(memory.precision, memory.loss + loss, memory.gradient + gradient, pairs)
    return replace(mode, memory=following)
