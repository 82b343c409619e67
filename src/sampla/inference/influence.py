"""How test data would be predicted without a training datum: influence functions with the posterior's own H.

Without datum n the optimum moves by H_-n^-1 J_n' g_n, with g_n = -d log p(y_n | f_n) / df and H_-n = H - J_n' B_n J_n.
To first order that is H^-1 J_n' g_n (Cook and Weisberg 1982; Koh and Liang 2017), and a quantity q of a test datum
moves by

    (dq / df)' J_test H^-1 J_n' g_n.

It takes one solve for each test quantity, u = H^-1 J_test' dq / df, and one jvp of it over the training data; nothing
larger than a block of u and the answer is kept. H is that of the fit, with its prior and its B, and the error of the
solve is that of the answer: |phi (u - u*)|_B / |phi u*|_B over the data of the fit.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from sampla.core.blocks import dots
from sampla.core.checks import one_of_each, require, require_finite, require_known
from sampla.core.data import CheckedLoader
from sampla.core.inputs import input_tensors, num_inputs, pick
from sampla.core.typing import Inputs
from sampla.features import Chunked, Features, Linearisation
from sampla.inference.mode import mode_of
from sampla.inference.state import Inference
from sampla.model import Ledger, LinearModel
from sampla.solvers import BlockCG, LinearSystem, RightHandSide, Solution, Status, solve

Measure: TypeAlias = Callable[[Tensor, Tensor | None], Tensor]
"""(n, *out) outputs and the targets, None where there are none, to (n,) numbers; differentiable by autograd."""
At: TypeAlias = Literal["network", "linear-mode"]

_MODE_TOLERANCE = 0.001
"""Of a mode that EM has not found yet: residuals there are differences, known less well than the mode is."""
_ORDER = "Column n of the answer belongs to datum n: give a loader that does not shuffle."


@dataclass(frozen=True)
class Influence:
    """By how much quantities of test data would change if one training datum were left out, to first order."""

    change: Tensor
    """(n_test, n_train), or of outputs (n_test, *out, n_train); training data in the order of their loader.

    Positive: the quantity would be larger without the datum, so that a datum with a positive one helps where the
    quantity is a loss. A sum over data is what leaving out all of them does, to first order."""
    quantity: str
    """What changes."""
    errors: Tensor
    """(n_test,) or (n_test, *out): estimated relative error of the solve for each quantity, in its effect on the data
    of the fit in the norm of B."""
    tolerance: float
    """What was asked of the solve."""
    status: str
    """How the solve ended, the worst one if it went in several blocks."""
    products: float
    """Products over all data of the fit that it has cost; a jvp or a vjp alone is half of one."""

    @property
    def solve_error(self) -> float:
        """Root mean square of ``errors``."""
        return float(self.errors.double().square().mean().sqrt())

    def __str__(self) -> str:
        count = self.errors.numel()
        return (
            f"Change of {count:,} numbers ({self.quantity}) when one of {self.change.shape[-1]:,} training data is\n"
            "left out, to first order. Positive: larger without it.\n"
            f"  solve  {self.status}; relative error about {self.solve_error:.1%} where {self.tolerance:.1%} was\n"
            f"         asked, at worst {float(self.errors.max()):.1%}\n"
            f"  cost   {self.products:,.0f} products, {self.products / count:,.0f} for each number"
        )


def influence(
    inference: Inference | None,
    features: Features,
    train: CheckedLoader,
    test: tuple[Inputs, Tensor | None],
    *,
    measure: Measure | None,
    at: At,
    tolerance: float,
    max_passes: int,
    seed: int,
    say: Callable[[str], None],
) -> Influence:
    """The influence of each datum of ``train`` on each of ``test``; see ``LinearisedLaplace.influence``.

    Args:
        inference: a fit whose data can still be read; None is refused.
        features: phi in the coordinates of its parameters, with the network's outputs.
        train: data of the fit, all or some.
        test: inputs and targets; without targets the outputs are asked about.
        measure: of the test data, in the place of their loss.
        at: where the outputs lie at which gradients are taken.
        tolerance, max_passes: of the solves.
        seed: of the signs that measure their errors.
        say: called with one line at every stage.

    Returns:
        The Influence. A ConvergenceWarning says if a solve stopped short.

    Raises:
        ValueError: for no fit; training data that are not the fit's, or come in another order on each pass; test data
            that do not fit; a measure that does not give one number for each datum.
    """
    require_known(at, ("network", "linear-mode"), "at")
    remedy = "A file holds no training data: call fit(loader), with checkpoint= to go on from what a fit has kept."
    require(
        inference is not None,
        "a fit of this process to ask for influence",
        "a posterior from a file, or one moved by to()",
        remedy,
    )
    assert inference is not None
    model = inference.model
    model = LinearModel(model.features, model.likelihood, model.data, Ledger(), model.chunks, exact=True)
    asked = _Asked(features, model, *test, measure)
    shape = asked.shape()
    if train.ranks is not None:
        asks = input_tensors(test[0]) if test[1] is None else (*input_tensors(test[0]), test[1])
        asks_of = [[*each.shape, float(each.double().sum())] for each in asks]
        train.ranks.agree("influence", {"test data": asks_of, "at": at, "measure": measure is not None})
    say("checking the training data")
    _check_train(train, model)
    with one_of_each(stacklevel=5), model.data.kept_meanwhile():
        asked = replace(asked, theta=None if at == "network" else mode_of(inference, _MODE_TOLERANCE, say)[0][None])
        rows, solved = [], []
        for columns in asked.blocks(len(inference.samples)):
            solved.append(_solved(inference, model, columns, tolerance, max_passes, seed, say))
            say("influence, over the training data")
            rows.append(asked.over(train, solved[-1].value * inference.prior.scale))
    require(train.fixed_order, "training data in the same order on every pass", "another order", _ORDER)
    worst = max((each.status for each in solved), key=list(Status).index)
    return Influence(
        torch.cat(rows).view(*shape, -1), asked.quantity, torch.cat([_errors(each) for each in solved]).view(shape),
        tolerance, worst.value, model.ledger.products,
    )  # fmt: skip


@dataclass(frozen=True)
class _Asked:
    """Quantities of test data, and what they are pushed through."""

    features: Features
    model: LinearModel
    """Of the fit: its likelihood, and how much goes through at once."""
    inputs: Inputs
    targets: Tensor | None
    measure: Measure | None
    theta: Tensor | None = None
    """(1, P) where the linear model's outputs are to be taken; None: those of the network."""

    @property
    def quantity(self) -> str:
        """What is asked about, in words."""
        if self.measure is not None:
            return "the measure given"
        return "outputs" if self.targets is None else "losses -log p(y | f), in nats"

    def shape(self) -> tuple[int, ...]:
        """(n_test,) or (n_test, *out), once the test data have been checked.

        Raises:
            ValueError: for NaN, targets that do not fit, or a measure that is not one number for each datum.
        """
        for tensor in input_tensors(self.inputs):
            require_finite(tensor, "test inputs", "Remove or impute them.")
        outputs = Chunked(self.features, self.inputs, self.model.chunks).outputs
        require_finite(outputs, "network outputs on the test inputs", "Check the scaling of the inputs.")
        if self.targets is not None:
            self.model.likelihood.check_targets(outputs, self.targets)
        with torch.enable_grad():
            found = self._quantities(outputs.detach().requires_grad_(), self.targets)
        fix = "Write it with torch's operations on the outputs, without detach() or argmax."
        require(found.requires_grad, "a measure that torch can differentiate", "a constant", fix)
        return tuple(found.shape)

    def blocks(self, count: int) -> Iterator[Tensor]:
        """J' dq / df of all quantities, so many at a time, (k, P)."""
        waiting: list[Tensor] = []
        for rows in self._rows():
            waiting.extend(rows.split(1))
            while len(waiting) >= count:
                yield torch.cat(waiting[:count])
                del waiting[:count]
        if waiting:
            yield torch.cat(waiting)

    def over(self, train: CheckedLoader, solved: Tensor) -> Tensor:
        """(J_n u)' g_n for every training datum, (k, P) to (k, n_train): one pass of jvps."""
        solved, found, chunks = solved.to(self.features.device), [], self.model.chunks
        for batch in train:
            for few in batch.minibatches(chunks.rows(len(solved))):
                here = Chunked(self.features, few.inputs, chunks)
                outputs = self._outputs(here).detach().requires_grad_()
                with torch.enable_grad():
                    loss = self.model.likelihood.loss(outputs, few.targets).sum()
                    (slope,) = torch.autograd.grad(loss, outputs)
                pushed = [here.jvp(solved[part.start : part.stop]) for part in chunks.ranges(len(solved))]
                found.append((torch.cat(pushed) * slope).reshape(len(solved), len(slope), -1).sum(2))
        self.model.ledger.products += len(solved) / 2
        columns = torch.cat([solved.new_zeros(len(solved), 0), *found], dim=1)
        return columns if train.ranks is None else train.ranks.joined("influence", columns.T).T

    def _rows(self) -> Iterator[Tensor]:
        """J' dq / df of one test datum after the other, or of all where they cannot be told apart."""
        size = num_inputs(self.inputs)
        places = [slice(None)] if size is None else [slice(row, row + 1) for row in range(size)]
        for place in places:
            inputs = self.inputs if size is None else pick(self.inputs, place)
            here = Chunked(self.features, inputs, self.model.chunks)
            outputs = self._outputs(here).detach().requires_grad_()
            with torch.enable_grad():
                each = self._quantities(outputs, None if self.targets is None else self.targets[place]).flatten()
                slopes = [torch.autograd.grad(one, outputs, retain_graph=True)[0] for one in each]
            yield here.vjp(torch.stack(slopes))

    def _outputs(self, here: Linearisation) -> Tensor:
        """(n, *out) where gradients are taken."""
        if self.theta is None:
            return here.outputs
        return here.linear_outputs(self.theta.to(self.features.device), self.features.origin)[0]

    def _quantities(self, outputs: Tensor, targets: Tensor | None) -> Tensor:
        if self.measure is None:
            return outputs if targets is None else -self.model.likelihood.log_prob(outputs, targets)
        found = self.measure(outputs, targets)
        right = isinstance(found, Tensor) and found.shape == outputs.shape[:1]
        require(
            right, f"a measure of {len(outputs)} test data that returns a tensor ({len(outputs)},)",
            f"{tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__,
            "It is called with outputs (n, *out) and targets, and must give one number for each datum.",
        )  # fmt: skip
        return found


def _check_train(train: CheckedLoader, model: LinearModel) -> None:
    """Two readings: the data are the fit's and fit the likelihood; they come in the same order again.

    Raises:
        ValueError: saying which datum is none of the fit's.
    """
    for batch in train:
        stranger = model.data.stranger(batch) if isinstance(model.data, CheckedLoader) else None
        require(
            stranger is None, "training data of the fit, to ask what would be without one",
            f"a datum that is none of them, inputs and target together (number {batch.position + (stranger or 0)})",
            "Give the loader of the fit or a part of its data, unchanged.",
        )  # fmt: skip
    for _ in train:
        pass
    require(train.fixed_order, "training data in the same order on every pass", "another order", _ORDER)


def _solved(
    inference: Inference, model: LinearModel, columns: Tensor, tolerance: float, max_passes: int, seed: int,
    say: Callable[[str], None],
) -> Solution:  # fmt: skip
    """H u = J' dq / df in the coordinates of the model; columns at one size, so that none is lost beside the others."""
    columns = columns.to(model.features.like.device) * inference.prior.scale
    system = LinearSystem(model, inference.prior.diagonal, inference.posed.diagonal)
    size = dots(columns, system.inverse.solve(columns)).clamp_min(0).sqrt()
    size = torch.where(size > 0, size, 1).to(columns)[:, None]
    posed = RightHandSide(columns / size, torch.zeros_like(columns), len(columns), seed)
    found = solve(
        BlockCG(), system, posed, tolerance=tolerance, max_passes=max_passes, say=lambda text: say(f"influence, {text}")
    )  # fmt: skip
    return replace(found, value=found.value * size)


def _errors(found: Solution) -> Tensor:
    """(k,) of each column, where the solver can tell them apart."""
    return found.value.new_full(found.value.shape[:1], found.error) if found.errors is None else found.errors
