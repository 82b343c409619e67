"""Blocks of vectors, (K, P) with vectors as rows: orthonormal bases of them, for blocks too large to copy to float64.

Gram matrices are accumulated in float64 over chunks of P, whatever the dtype of the block, and everything (K, K) stays
in float64. Orthonormalisation from the Gram matrix, done twice (Yamamoto, Nakatsukasa, Yanagisawa, Fukaya 2015,
CholeskyQR2), with eigenvectors in place of Cholesky's factor because they reveal the rank (Stathopoulos and Wu 2002).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from sampla.core.stack import Stack
from sampla.distributed import Slices

CHUNK = 2**21
"""Entries of a block that are in float64 at once: 16 MiB."""
_ROUNDING = 4.0
"""Directions shorter than so many rounding errors are noise."""
_VISIBLE = 3e-7
"""Shortest direction, relative to the longest, that a float64 Gram matrix shows: its square is 500 rounding errors."""
_SURE = 0.1
"""Length, after the first time, below which a direction is rounding of the inner product: all should be near one."""

Map = Callable[[Tensor], Tensor]


def gram(
    left: Tensor | Stack, right: Tensor | Stack, weight: Tensor | None = None, slices: Slices | None = None
) -> Tensor:
    """(K, L) inner products of the rows of (K, P) and (L, P), in float64; with (P,) weights sum_p w_p l_p r_p.

    Where processes hold slices of the vectors, all three are this process's, and the sums are those over all slices.

    Args:
        left: (K, P).
        right: (L, P).
        weight: (P,).
        slices: of tensors; a stack knows its own.
    """
    width = max(1, CHUNK // max(1, len(left) + len(right)))
    total = torch.zeros(len(left), len(right), dtype=torch.float64, device=left.device)
    for start in range(0, left.shape[1], width):
        span = slice(start, start + width)
        first = _double(left, span)
        second = first if right is left else _double(right, span)
        total += (first if weight is None else first * weight[span].double()) @ second.mT
    slices = left.slices if isinstance(left, Stack) else slices
    return total if slices is None else slices.summed(total)


def dots(left: Tensor, right: Tensor, weight: Tensor | None = None) -> Tensor:
    """(K,) inner products of matching rows of two (K, P) blocks, in float64; weights as in ``gram``."""
    width = max(1, CHUNK // max(1, 2 * len(left)))
    total = torch.zeros(len(left), dtype=torch.float64, device=left.device)
    for start in range(0, left.shape[1], width):
        span = slice(start, start + width)
        first = left[:, span].double()
        total += torch.linalg.vecdot(
            first if weight is None else first * weight[span].double(), right[:, span].double()
        )
    return total


def _double(block: Tensor | Stack, span: slice) -> Tensor:
    return (block.columns(span) if isinstance(block, Stack) else block[:, span]).double()


def transformed_in_place(matrix: Tensor, rows: Tensor) -> Tensor:
    """Multiply rows (K, P) by a matrix (K, K) in place, and return them; this needs no second block."""
    width = max(1, CHUNK // max(1, len(rows)))
    for start in range(0, rows.shape[1], width):
        span = slice(start, start + width)
        rows[:, span] = matrix @ rows[:, span]
    return rows


def on_host(*small: Tensor) -> tuple[Tensor, ...]:
    """Small tensors in float64 on the CPU: one copy from an accelerator, which waits once for all of them.

    Args:
        small: of any shapes, all on one device.
    """
    if small[0].device.type == "cpu":
        return tuple(each.double() for each in small)
    parts = torch.cat([each.double().flatten() for each in small]).cpu().split([each.numel() for each in small])
    return tuple(part.view(each.shape) for part, each in zip(parts, small, strict=True))


def orthonormal(rows: Tensor, scale: Tensor | None = None, slices: Slices | None = None) -> tuple[Tensor, Tensor]:
    """An orthonormal basis Q of the rows, and C with rows = C' Q; m is their numerical rank.

    Args:
        rows: (K, P), finite.
        scale: (K,) lengths that rounding errors in the rows are relative to; None: their own lengths. To be given
            for rows that are differences of longer ones, such as residuals.
        slices: where the rows are this process's slices of vectors, and Q is to be too.

    Returns:
        Q (m, P) with Q Q' = I, and C (m, K) in float64. Dependent and zero rows make m smaller, down to 0.

    Raises:
        ArithmeticError: if the rows contain NaN or infinity.

    >>> Q, C = orthonormal(torch.tensor([[3.0, 0, 4], [6, 0, 8], [0, 0, 0]]))
    >>> Q.shape, C.shape
    (torch.Size([1, 3]), torch.Size([1, 3]))
    """
    basis, _, factor = orthonormal_pair(rows, lambda vectors: vectors, scale, slices)
    return basis, factor.to(rows.device)


def orthonormal_pair(
    rows: Tensor, metric: Map, scale: Tensor | None = None, slices: Slices | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The same in the inner product u' W v: rows = C' Q with Q S' = I, where S = W Q is returned beside Q.

    Args:
        rows: (K, P), finite.
        metric: W, symmetric and positive definite: (K, P) -> (K, P); what it is given itself, or a new tensor.
        scale: (K,) as for ``orthonormal``, in the norm of W.
        slices: as for ``orthonormal``.

    Returns:
        Q (m, P), S (m, P), and C (m, K) in float64 on the CPU.

    Raises:
        ArithmeticError: if the rows or their images contain NaN or infinity.
    """
    first = gram(rows, metric(rows), slices=slices).cpu()
    scale = first.diagonal().clamp_min(0).sqrt() if scale is None else scale.to(first)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    floor = _ROUNDING * len(rows) ** 0.5 * torch.finfo(rows.dtype).eps
    basis, dual, factor, hidden = _from_gram(rows, metric, first, scale, floor, slices)
    if hidden and floor < _VISIBLE:  # shorter directions show once the longer ones are taken out
        rest = torch.addmm(rows, factor.mT.to(rows), basis, alpha=-1)
        again = gram(dual, rest, slices=slices).cpu()
        rest.addmm_(again.mT.to(rows), basis, alpha=-1)
        left = gram(rest, metric(rest), slices=slices).cpu()
        more, more_dual, more_factor, _ = _from_gram(rest, metric, left, scale, floor, slices)
        same = dual is basis
        basis = torch.cat([basis, more])
        dual = basis if same else torch.cat([dual, more_dual])
        factor = torch.cat([factor + again, more_factor])
    return basis, dual, factor


def _from_gram(
    rows: Tensor, metric: Map, first: Tensor, scale: Tensor, floor: float, slices: Slices | None
) -> tuple[Tensor, Tensor, Tensor, bool]:
    """Q, S = W Q, C of what the Gram matrix shows, and whether it hides something.

    What is (K, K) is on the CPU, wherever the rows are: a device would be asked for each number of it.
    """
    lengths, vectors = _eigen(first / scale / scale[:, None])
    longest = float(lengths.max()) if len(lengths) else 0.0
    kept = lengths > max(floor, _VISIBLE * longest)
    lengths, vectors = lengths[kept], vectors[:, kept]
    basis = (vectors / lengths / scale[:, None]).mT.to(rows) @ rows
    factor = lengths[:, None] * (vectors.mT * scale)
    # Dividing by short lengths has magnified the rounding errors of the rows: once more, now from nearly orthonormal.
    dual = metric(basis)
    lengths, vectors = _eigen(gram(basis, dual, slices=slices).cpu())
    sure = lengths > _SURE
    if not bool(sure.all()):  # rounding of an ill-conditioned W: along these u' W u is anything, below zero too
        change, back = (vectors / lengths)[:, sure].mT.to(rows), (vectors * lengths)[:, sure].mT
        shorter = change @ basis
        return shorter, shorter if dual is basis else change @ dual, back @ factor, not bool(kept.all())
    change = ((vectors / lengths) @ vectors.mT).to(rows)
    factor = (vectors * lengths) @ vectors.mT @ factor
    same = dual is basis
    basis = transformed_in_place(change, basis)
    return basis, basis if same else transformed_in_place(change, dual), factor, not bool(kept.all())


def _eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Roots of the eigenvalues, and the eigenvectors, of a positive semi-definite matrix."""
    if not bool(matrix.isfinite().all()):
        raise ArithmeticError("NaN or infinity in a block of vectors")
    values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
    return values.clamp_min(0).sqrt(), vectors
