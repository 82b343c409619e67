"""The linear model y_n = phi_n theta + noise: every quantity that takes a pass over the data.

The cost of everything is counted in products: one product is M times one vector over all data.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import log2

import torch
from torch import Tensor

from sampla.core.chunks import Chunks, usual_rows
from sampla.core.data import CheckedLoader, Data
from sampla.core.journal import Journal
from sampla.core.progress import Progress
from sampla.core.rounding import Rounding
from sampla.core.typing import Loader
from sampla.distributed import Slices, refuse_spread
from sampla.features import Chunked, Features, displaced, predicted
from sampla.likelihoods import Likelihood
from sampla.linear_batch import Companion, LinearBatch
from sampla.parts import where_data_lie
from sampla.survey import FirstLook, Survey

_NOISE_BLOCK = 32
"""Data whose noisy gradients are summed before they are squared; fixed, so that results do not depend on batches.

A batch that cannot be cut ends the block it runs over: blocks of any size give an unbiased square.
"""
_PLENTY = 4096
"""Data from which a Newton step may take its curvature (the gradient always comes from all of them)."""


@dataclass
class Ledger:
    """What has been spent on a fit: products with M (a jvp or a vjp alone counts half)."""

    products: float = 0.0


@dataclass(frozen=True)
class NoiseDraw:
    """The data part of K right-hand sides, and what the same pass says about M."""

    data_part: Tensor
    """(K, P): sum_n phi_n' S_n xi_n, distributed as N(0, M)."""
    diagonal: Tensor
    """(P,): unbiased estimate of the diagonal of M, relative error sqrt(2 / (blocks * K)).

    Zero for tensors of which the pass gives rounding only."""


class LinearModel:
    """Features, a likelihood and data; the prior enters through the features' scale and the linear system."""

    def __init__(
        self,
        features: Features,
        likelihood: Likelihood,
        data: Data | Loader,
        ledger: Ledger | None = None,
        chunks: Chunks | None = None,
        exact: bool = False,
        journal: Journal | None = None,
        companion: Companion | None = None,
    ) -> None:
        """Args: features and likelihood: what each datum is modelled by. data: a re-iterable of (inputs, targets).

        ledger: shared by models whose costs are counted together. chunks: how much goes through the features at once.
        exact: products with M in full precision even where the features offer cheaper ones. journal: of its passes.
        companion: goes along with products with M, unless they are in reduced precision.
        """
        if not isinstance(data, Data):
            data = CheckedLoader(data, features.device, Progress(False), counted=likelihood.counted)
        self.features, self.likelihood, self.data = features, likelihood, data
        self.ledger, self.chunks, self.exact = ledger or Ledger(), chunks or Chunks(), exact
        self.journal, self.companion = journal or Journal(None), companion

    @property
    def num_parameters(self) -> int:
        """P."""
        return self.features.layout.total

    @property
    def slices(self) -> Slices:
        """How vectors of P are cut where processes that share the data hold a slice each."""
        return Slices(self.data.ranks, self.num_parameters)

    def _to_device(self, vectors: Tensor) -> Tensor:
        """Vectors of P where the products are computed, for a pass."""
        return vectors.to(self.features.device)

    def _to_vectors(self, vectors: Tensor) -> Tensor:
        """Vectors of P back where they live."""
        return vectors.to(self.features.like.device)

    @property
    def reduced(self) -> bool:
        """Whether products with M are taken in reduced precision."""
        base, _ = self.features.unscaled()
        return not self.exact and base.cheaper() is not base

    @property
    def rounding(self) -> float:
        """Relative rounding error of a product with M."""
        return (self.features if self.exact else self.features.unscaled()[0].cheaper()).rounding

    def replaced(
        self, features: Features | None = None, likelihood: Likelihood | None = None, exact: bool | None = None
    ) -> "LinearModel":
        """The same data, ledger and chunks with other features, another likelihood, or products in full precision."""
        return LinearModel(
            features or self.features, likelihood or self.likelihood, self.data, self.ledger, self.chunks,
            self.exact if exact is None else exact, self.journal, self.companion,
        )  # fmt: skip

    def carrying(self, companion: Companion | None) -> "LinearModel":
        """The same with a companion that goes along with its products."""
        model = self.replaced()
        model.companion = companion
        return model

    def once(self, name: str, given: Tensor, compute: Callable[[], Sequence[Tensor]]) -> list[Tensor]:
        """The results of a pass, from the journal if it has them, with what they had cost."""

        def counters(products: float = 0.0, sweeps: int = 0) -> tuple[float, int]:
            self.ledger.products += products
            self.data.sweeps += sweeps
            return self.ledger.products, self.data.sweeps

        noise = self.likelihood.noise_precision
        name = name if noise is None else f"{name}, {float(noise.sum())}"
        return self.journal.once(name, given, compute, counters)

    def batches(
        self, columns: int = 1, stride: int = 1, offset: int = 0, *, rows: int | None = None, summed: bool = False
    ) -> Iterator[LinearBatch]:
        """Yield the minibatches of one pass, of a size that suits products with ``columns`` vectors.

        They are cut at fixed positions, whatever the chunks are, because strides and stochastic solvers take them for
        subsets of the data.

        Args:
            columns: vectors that are multiplied at once.
            stride: yields only every stride-th minibatch; the offsets 0 to stride - 1 make up one pass.
            offset: number of the first one.
            rows: data in a minibatch, at most; None: as suits the products.
            summed: the caller makes only sums of them, and passes these to ``data.summed``.

        Raises:
            ValueError: if it does not, and the data are spread over processes.
        """
        if not summed:
            refuse_spread(self.data.ranks, "a solver or an estimate that takes the data batch by batch")
        yield from self._minibatches(usual_rows(columns) if rows is None else rows, stride, offset)

    def _minibatches(
        self, rows: int, stride: int = 1, offset: int = 0, features: Features | None = None, noisy: bool = True
    ) -> Iterator[LinearBatch]:
        """Yield all minibatches of a pass, or every stride-th (whose noise must then not be asked for).

        If not noisy, none may be asked for either, and outputs are not computed only to be counted.
        """
        first_output, phi = self.data.first_output, features or self.features
        for index, batch in enumerate(self.data):
            for minibatch in batch.minibatches(rows) if self.data.cut else [batch]:
                number = minibatch.position // rows if self.data.cut and not batch.opaque else index
                if (number - offset) % stride:
                    continue
                here = Chunked(phi, minibatch.inputs, self.chunks)
                first_output = self.data.jumps.get(minibatch.position, first_output)
                stop = minibatch.position + minibatch.size
                yield LinearBatch(
                    here,
                    self.likelihood,
                    minibatch.targets,
                    minibatch.position,
                    stop,
                    first_output,
                    phi.origin,
                    minibatch.weights,
                )
                if noisy:
                    first_output += here.outputs.numel()

    def survey(self) -> Survey:
        """One forward pass that checks all data and measures the residuals of likelihoods that have them.

        Raises:
            ValueError: for NaN in inputs, outputs or targets, or targets that do not fit the outputs.
        """
        if self.data.in_parts:
            outputs, numbers, *moments = self._survey_sums()
            residual, target = moments or (None, None)
            entries, count = float(outputs) - self.features.absorbed, self.data.count_outputs(int(numbers))
            return Survey(self.data.num_data, float(outputs), entries, residual, target, count)
        return self._first_look().survey(self.data)

    def _first_look(self) -> FirstLook:
        first_look = FirstLook(self.features, self.likelihood, self.chunks, unchecked=self.data.cut)
        for batch in self.data:
            for minibatch in batch.minibatches(self.chunks.rows(1)) if self.data.cut else [batch]:
                first_look.see(minibatch)
        return first_look

    @where_data_lie
    def _survey_sums(self) -> list[Tensor]:
        """What of a survey sums over data: outputs, with and without weights, and the residuals' moments if any."""
        found = self._first_look().survey(self.data, whole=False)
        counts = [torch.tensor(each, dtype=torch.float64) for each in (found.outputs, found.numbers)]
        return counts + [each for each in (found.residual, found.target) if each is not None]

    def draw_noise(self, seed: int, num_samples: int) -> NoiseDraw:
        """One pass of K vjps: the right-hand sides' data part and diag M (docs/method.md, sections 2 and 5).

        Both are exactly zero for a parameter tensor of which the pass gives rounding only (``Rounding``).
        """
        if self.features.squares_data:
            return NoiseDraw(*self._draw_by_datum(seed, num_samples))
        total = self._to_device(self.features.like).new_zeros(num_samples, self.num_parameters)
        diagonal = total.new_zeros(self.num_parameters)
        block, rounding = torch.zeros_like(total), Rounding(total, self.features.layout.sizes, self.features.rounding)
        split = sorted({border // _NOISE_BLOCK for border in self.data.borders if border % _NOISE_BLOCK})
        ends = self.data.ends
        parts: dict[int, Tensor] = {}  # of blocks of which another process has a part as well
        for batch in self._minibatches(_noise_block_rows(self.chunks.rows(num_samples))):
            for samples in self.chunks.ranges(num_samples):
                block[samples.start : samples.stop] += batch.noise_gradient(seed, samples)
            if rounding.rows:
                rounding.add(batch.noise(seed, rounding.rows), batch.features.rounded_otherwise().vjp)
            number = batch.start // _NOISE_BLOCK
            if batch.stop // _NOISE_BLOCK > number or batch.stop in ends:
                total += block
                if number in split:
                    parts[number] = parts[number] + block if number in parts else block.clone()
                else:
                    diagonal += block.square().mean(0)
                rounding.close(block)
                block.zero_()
        total, diagonal = self.data.summed("noise", total, diagonal)
        for number in split:
            (whole,) = self.data.summed("noise of a block", parts.pop(number, torch.zeros_like(block)))
            diagonal += whole.square().mean(0)
        if self.data.ranks is not None:
            rounding.gather(lambda *sums: self.data.summed("rounding", *sums))
        rounding.zero_rounding(diagonal, total)
        self.ledger.products += (num_samples + rounding.columns) / 2
        return NoiseDraw(self._to_vectors(total), self._to_vectors(diagonal))

    @where_data_lie
    def _draw_by_datum(self, seed: int, num_samples: int) -> list[Tensor]:
        """The same where the features square the gradient of each datum for little."""
        total = self._to_device(self.features.like).new_zeros(num_samples, self.num_parameters)
        diagonal = total.new_zeros(self.num_parameters)
        for batch in self._minibatches(self.chunks.rows(len(total))):
            for samples in self.chunks.ranges(len(total)):
                noise = batch.noise(seed, samples)
                total[samples.start : samples.stop] += batch.features.vjp(noise)
                diagonal += batch.features.squared_vjp(noise) * (len(samples) / len(total))
        total, diagonal = self.data.summed("noise", total, diagonal)
        self.ledger.products += len(total) / 2
        return [self._to_vectors(total), self._to_vectors(diagonal)]

    def curvature_product(self, vectors: Tensor, stride: int = 1) -> Tensor:
        """M v for K vectors in one pass: (K, P) -> (K, P).

        With a stride, M is estimated from every stride-th minibatch of the data, for that part of the cost.
        A companion is answered in the same pass, unless that reads or computes less exactly than it asks for.
        """
        name, companion = f"M v, {stride}, {self.exact}", None if stride > 1 or self.reduced else self.companion
        asked = None if companion is None else companion.asked
        if companion is None or asked is None or asked.stride > 1:
            return self.once(name, vectors, lambda: self._curvature_product(vectors, stride))[0]
        both, more = torch.cat([vectors, asked.rows]), len(asked.rows)
        product, loss = self.once(f"{name}, {more}", both, lambda: self._curvature_product(both, 1, more))
        companion.told(float(loss), product[-1:], more)
        return product[:-1]

    @where_data_lie
    def _curvature_product(self, vectors: Tensor, stride: int, asked: int = 0) -> list[Tensor]:
        """M times the vectors; the last of them may be what is asked: their answer is then behind it, and the loss."""
        count, seen = len(vectors) - asked, 0
        features, scale = self.features.unscaled()
        features, entering = features if self.exact else features.cheaper(), vectors
        if scale is not None:
            entering = vectors * scale
            entering[count : count + asked][:1] = features.rescaled(vectors[count : count + asked][:1], scale)
        entering = self._to_device(entering)
        total = torch.zeros_like(entering[: count + min(asked, 1)])
        entering, loss = features.entering(entering), entering.new_zeros((), dtype=torch.float64)
        rows = self.chunks.rows(count) if stride == 1 else usual_rows(count)
        for batch in self._minibatches(rows, stride, features=features, noisy=False):
            seen += batch.stop - batch.start
            for columns in self.chunks.ranges(count, asked):
                part = entering[columns.start : columns.stop]
                if columns.stop > count:
                    found, loss_here = batch.product_and_answer(part, asked)
                    total[columns.start :] += found
                    loss += loss_here
                else:
                    total[columns.start : columns.stop] += batch.curvature_product(part)
        sums = self._to_vectors(features.leaving(total)), loss
        (total, loss), seen = self._all(f"M v, {stride}", seen, *sums)
        share = seen / self.data.num_data
        total = total if scale is None else total.mul_(scale)
        self.ledger.products += len(vectors) * share
        return [total, self._to_vectors(loss)] if asked else [total if seen == self.data.num_data else total / share]

    def loss_gradient(self, theta: Tensor) -> tuple[float, Tensor]:
        """The loss -sum log p(y_n | phi_n theta), or of the tangent, and its gradient: (1, P) -> float, (1, P)."""
        loss, gradient = self.once("loss", theta, lambda: self._loss_gradient(theta))
        return float(loss), gradient

    @where_data_lie
    def _loss_gradient(self, theta: Tensor) -> list[Tensor]:
        features, scale = self.features.unscaled()
        theta = self._to_device(theta if scale is None else features.rescaled(theta, scale))
        loss, gradient = torch.zeros((), dtype=torch.float64, device=theta.device), torch.zeros_like(theta)
        for batch in self._minibatches(self.chunks.rows(1), features=features, noisy=False):
            part, slope = batch.loss_gradient(theta)
            loss += part
            gradient += slope
        loss, gradient = self.data.summed("loss", loss, self._to_vectors(gradient))
        gradient = gradient if scale is None else gradient.mul_(scale)
        self.ledger.products += 1
        return [self._to_vectors(loss), gradient]

    def newton_product(self, theta: Tensor, vector: Tensor, stride: int = 1) -> Tensor:
        """The Hessian of the loss at theta times a vector, estimated from every stride-th minibatch of the data.

        (1, P), (1, P) -> (1, P); the same data in every call, as long as the loader's order is fixed.
        """
        both = torch.cat([theta, vector])
        return self.once(f"Newton, {stride}", both, lambda: self._newton_product(theta, vector, stride))[0]

    @where_data_lie
    def _newton_product(self, theta: Tensor, vector: Tensor, stride: int) -> list[Tensor]:
        theta, vector = self._to_device(theta), self._to_device(vector)
        total, seen = torch.zeros_like(vector), 0
        for batch in self.batches(2, stride, summed=True):
            total += batch.newton_product(theta, vector)
            seen += batch.stop - batch.start
        (total,), seen = self._all(f"Newton, {stride}", seen, total)
        self.ledger.products += 1.5 * seen / self.data.num_data
        return [self._to_vectors(total) * (self.data.num_data / seen)]

    @property
    def hessian_stride(self) -> int:
        """Which part of the data, one in so many, is plenty for the curvature of a Newton step."""
        return max(1, min(8, self.data.num_data // _PLENTY)) if self.data.fixed_order else 1

    def noise_moments(self, mean: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Second moments of the residuals at the linear model's mean, and of phi z over K samples, for the M-step."""
        name = f"noise, {float(mean.sum())}" if self.journal.keeps else "noise"
        residual, function = self.once(name, samples, lambda: self._noise_moments(mean, samples))
        return self._to_device(residual), self._to_device(function)  # kept ones come from a file, on the CPU

    @where_data_lie
    def _noise_moments(self, mean: Tensor, samples: Tensor) -> list[Tensor]:
        origin = self.features.origin
        columns = self._to_device(torch.cat([displaced(mean, origin), samples]))
        residual = function = torch.zeros((), dtype=torch.float64, device=columns.device)
        for batch in self._minibatches(self.chunks.rows(len(columns)), noisy=False):
            ranges = self.chunks.ranges(len(columns))
            pushed = torch.cat([batch.features.jvp(columns[part.start : part.stop]) for part in ranges])
            found = predicted(batch.features.outputs, pushed[:1], origin)[0]
            left = self.likelihood.residuals(found, batch.targets)
            assert left is not None, "a likelihood whose noise is learnt has residuals"
            residual = residual + self.likelihood.second_moment(batch.weighted(left[None], 0.5))
            function = function + self.likelihood.second_moment(batch.weighted(pushed[1:], 0.5))
        self.ledger.products += len(columns) / 2
        residual, function = self.data.summed("noise moments", residual, function)
        return [residual, function / max(len(samples), 1)]

    def _all(self, name: str, seen: int, *sums: Tensor) -> tuple[list[Tensor], int]:
        """The sums over all processes, and how many data they have seen."""
        if self.data.ranks is None:
            return list(sums), seen
        *found, number = self.data.summed(name, *sums, torch.tensor(seen, dtype=torch.float64))
        return found, int(number)


def _noise_block_rows(rows: int) -> int:
    """The largest power of two of at most so many rows that blocks are made of whole."""
    return int(2 ** int(log2(min(rows, _NOISE_BLOCK))))
