"""Detects tensors whose squared derivatives are rounding errors only.

A derivative that is zero in exact arithmetic (of the bias of an attention's keys, of a convolution's bias before an
instance normalisation) comes out as some multiple of the rounding error, whatever the tensor's own size. How large that
multiple is depends on the network; it is measured by taking a few derivatives twice, with cotangents u and 3 u and at
weights that differ by a rounding error (``Features.rounded_otherwise``): what differs then is rounding.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

_COLUMNS = 4
"""Vectors that are pulled back twice, in blocks 0, 1, 2, 4, 8, ... of a pass: below 2 % of it from 5,000 data on."""
_FACTOR = 3.0
"""No power of two, so that every product and sum rounds anew."""
_SMALL = 1e-5
"""Rounding errors up to which a change of all weights by one leaves every derivative about as it was."""
_TENSOR_FLOAT = 2.0**-11
"""Rounding errors of accelerators that multiply float32 in short."""


def nudged(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors a rounding error away, up or down by the sign of another entry; those of short types as they are."""
    changed = {}
    for name, tensor in tensors.items():
        at, epsilon = tensor.detach(), torch.finfo(tensor.dtype).eps
        signs = at.flatten().flip(0).view_as(at).sign()
        changed[name] = at + at * signs * epsilon if epsilon < _SMALL else at
    return changed


class Rounding:
    """Estimates what rounding errors contribute to the diagonal of M, for each parameter tensor, in the noise pass.

    Args:
        like: (K, P) of the pass.
        sizes: number of entries of each parameter tensor.
        epsilon: relative rounding error of the products, more than that of the vectors' type where a part of the
            network computes in a coarser one.
    """

    def __init__(self, like: Tensor, sizes: Sequence[int], epsilon: float) -> None:
        self._sizes = list(sizes)
        self._again = torch.zeros_like(like[:_COLUMNS])
        self._sums = torch.zeros(len(self._sizes), dtype=torch.float64, device=like.device)
        self._blocks = self._seen = 0
        self._epsilon = epsilon

    def add(self, cotangents: Tensor, pull: Callable[[Tensor], Tensor]) -> None:
        """Compute the derivatives of some data of a block a second time, rounded differently.

        Args:
            cotangents: (len(rows), n, *out).
            pull: (k, n, *out) -> (k, P), linear, and rounded otherwise.
        """
        self._again += pull(cotangents * _FACTOR) / _FACTOR
        self._epsilon = max(self._epsilon, torch.finfo(cotangents.dtype).eps)

    def close(self, block: Tensor) -> None:
        """Compare with a block (K, P) that is complete."""
        if self.rows:
            squares = (block[: len(self._again)] - self._again).double().square().mean(0)
            self._sums += torch.stack([part.sum() for part in squares.split(self._sizes)])
            self._again.zero_()
            self._seen += 1
        self._blocks += 1

    @property
    def rows(self) -> range:
        """The rows of the present block that are computed a second time; most blocks have none."""
        return range(len(self._again) if self._blocks & (self._blocks - 1) == 0 else 0)

    def gather(self, summed: Callable[..., list[Tensor]]) -> None:
        """Take what other processes have found of their data into account.

        Args:
            summed: sums tensors over all of them.
        """
        own = [self._blocks, self._seen, self._epsilon if self._seen else 0.0, float(self._seen > 0)]
        self._sums, counts = summed(self._sums, torch.tensor(own, dtype=torch.float64))
        blocks, seen, epsilons, processes = counts.tolist()
        self._blocks, self._seen = int(blocks), int(seen)
        self._epsilon = max(self._epsilon, epsilons / max(1.0, processes))  # with data, all have the same

    @property
    def columns(self) -> float:
        """The number of additional vector-Jacobian products in the pass, which is the cost of this estimate."""
        return len(self._again) * self._seen / max(1, self._blocks)

    def zero_rounding(self, diagonal: Tensor, total: Tensor) -> None:
        """Set to zero, in place, what belongs to tensors whose part of the diagonal is rounding only.

        In squares, over 40 networks, what is zero in exact arithmetic was at most 8 times the rounding measured here,
        and all else at least 2e7 times in float32 and 1e25 times in float64. In float16 and bfloat16, where the weights
        stay as they are, it was at most 100 times as a rule (but 1e4 before a normalisation of three values), all else
        1e5 and 1e3. The line is 1 / eps, with that of TensorFloat-32 for float32. It does not see all in float32 where
        a normalisation takes away a mean of a thousand standard deviations. NaN counts as something.

        Args:
            diagonal: (P,) of M.
            total: (K, P).
        """
        short = torch.finfo(torch.float64).eps < self._epsilon
        bound = 1 / (max(self._epsilon, _TENSOR_FLOAT) if short else self._epsilon) * self._blocks / max(1, self._seen)
        parts = zip(diagonal.split(self._sizes), self._sums, strict=True)
        silent = [squares.sum(dtype=torch.float64) <= bound * rounding for squares, rounding in parts]
        entries = torch.cat([each.expand(size) for each, size in zip(silent, self._sizes, strict=True)])
        diagonal.masked_fill_(entries, 0)
        total.masked_fill_(entries, 0)
