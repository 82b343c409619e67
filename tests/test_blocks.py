"""Orthonormal bases of blocks: rows = C' Q and Q W Q' = I, whatever the rank, the scales and the dtype."""

import pytest
import torch

from cases import randn
from sampla.core import blocks as blocks
from sampla.core.blocks import dots, gram, orthonormal, orthonormal_pair
from sampla.core.stack import Stack

BLOCKS = {  # (K, P) from a random one, and its rank in float32 and float64
    "random": (8, 300, lambda rows: rows, (8, 8)),
    "one row": (1, 50, lambda rows: rows, (1, 1)),
    "more rows than columns": (40, 20, lambda rows: rows, (20, 20)),
    "lengths over twelve decades": (8, 300, lambda r: r * torch.logspace(0, -12, 8).to(r)[:, None], (8, 8)),
    "nearly parallel": (8, 300, lambda rows: rows[:1] + 1e-3 * rows, (8, 8)),
    "parallel to float32": (8, 300, lambda rows: rows[:1] + 1e-9 * rows, (1, 8)),
    "equal, combined and zero rows": (4, 30, lambda r: torch.stack([r[0], r[0], r[1] - 2 * r[0], 0 * r[0]]), (2, 2)),
    "zero": (3, 30, lambda rows: 0 * rows, (0, 0)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("weighted", [False, True])
def test_rows_are_a_combination_of_an_orthonormal_basis_of_their_rank(name, dtype, weighted):
    height, width, change, ranks = BLOCKS[name]
    rows = change(randn(height, width).to(dtype))
    weight = (1 + randn(width, seed=1).square() if weighted else torch.ones(width)).to(dtype)
    basis, dual, factor = orthonormal_pair(rows, lambda vectors: vectors * weight)
    accuracy = 300 * torch.finfo(dtype).eps
    assert len(basis) == len(dual) == len(factor) == ranks[dtype is torch.float64]
    torch.testing.assert_close(gram(basis, dual), torch.eye(len(basis)).double(), rtol=0, atol=accuracy)
    torch.testing.assert_close(dual, basis * weight, rtol=accuracy, atol=accuracy)
    error = (rows.double() - factor.mT @ basis.double()).norm(dim=1)
    assert bool((error <= accuracy * rows.double().norm(dim=1)).all())


def test_plain_inner_product_is_the_default():
    rows = randn(5, 40)
    basis, factor = orthonormal(rows)
    torch.testing.assert_close(factor.mT @ basis, rows)
    torch.testing.assert_close(basis @ basis.mT, torch.eye(5).double())


def test_differences_of_longer_rows_are_rounding_where_the_longer_rows_say_so():
    rows = torch.cat([randn(2, 50), 1e-16 * randn(1, 50, seed=1)])
    assert len(orthonormal(rows)[0]) == 3
    assert len(orthonormal(rows, scale=torch.full((3,), 7.0))[0]) == 2


def test_directions_that_rounding_makes_negative_are_left_out_instead_of_becoming_nan():
    """An inner product of condition 1e9 in float32 gives any number for a short direction, another one every time."""
    rows, applied = torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.0])), []
    signs = torch.tensor([1.0, 1.0, -0.5, 1.0])

    def metric(vectors):
        applied.append(len(vectors))
        return vectors.clone() if len(applied) == 1 else vectors * signs

    basis, dual, factor = orthonormal_pair(rows, metric)
    assert applied == [4, 3]
    torch.testing.assert_close(gram(basis, dual), torch.eye(2).double())
    torch.testing.assert_close(factor.mT @ basis.double(), torch.diag(torch.tensor([3.0, 2.0, 0.0, 0.0])).double())


def test_chunks_do_not_matter(monkeypatch):
    rows = randn(6, 1000, dtype=torch.float32)
    whole = gram(rows, rows)
    monkeypatch.setattr(blocks, "CHUNK", 100)
    torch.testing.assert_close(gram(rows, rows), whole, rtol=1e-13, atol=1e-13)


def test_nan_is_refused():
    with pytest.raises(ArithmeticError, match="NaN or infinity in a block"):
        orthonormal(torch.tensor([[1.0, float("nan")]]))


@pytest.mark.parametrize("sizes", [(0, 5), (0, 2, 3), (5,), (0, 1, 0, 4)])
def test_a_stack_is_the_matrix_of_its_parts(sizes):
    whole, vectors = randn(5, 300), randn(3, 300, seed=1)
    stack = Stack(whole.split(sizes))
    assert (len(stack), stack.shape) == (5, (5, 300))
    torch.testing.assert_close(stack.columns(slice(None)), whole, rtol=0, atol=0)
    torch.testing.assert_close(stack.along(vectors), vectors @ whole.mT)
    mix, total = randn(3, 5, seed=2), vectors.clone()
    torch.testing.assert_close(stack.combined(mix), mix @ whole)
    assert stack.add_to(total, mix) is total
    torch.testing.assert_close(total, vectors + mix @ whole)
    torch.testing.assert_close(stack.added(vectors).columns(slice(None)), torch.cat([whole, vectors]), rtol=0, atol=0)
    assert len(stack) == 5, "the stack itself has not grown"


@pytest.mark.parametrize("stacked", [False, True])
def test_inner_products_with_weights(monkeypatch, stacked):
    monkeypatch.setattr(blocks, "CHUNK", 100)
    rows, others, weight = randn(4, 130), randn(2, 130, seed=1), randn(130, seed=2).square()
    left = Stack(rows.split((1, 3))) if stacked else rows
    torch.testing.assert_close(gram(left, others, weight), rows @ weight.diag() @ others.mT)
    torch.testing.assert_close(gram(left, left, weight), rows @ weight.diag() @ rows.mT)
    torch.testing.assert_close(dots(rows, 2 * rows, weight), 2 * (rows.square() @ weight))
