"""Orthonormal bases of blocks: rows = C' Q and Q W Q' = I, whatever the rank, the scales and the dtype."""

import pytest
import torch

from cases import randn
from sampla import _blocks
from sampla._blocks import gram, orthonormal, orthonormal_pair

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


def test_chunks_do_not_matter(monkeypatch):
    rows = randn(6, 1000, dtype=torch.float32)
    whole = gram(rows, rows)
    monkeypatch.setattr(_blocks, "CHUNK", 100)
    torch.testing.assert_close(gram(rows, rows), whole, rtol=1e-13, atol=1e-13)


def test_nan_is_refused():
    with pytest.raises(ArithmeticError, match="NaN or infinity in a block"):
        orthonormal(torch.tensor([[1.0, float("nan")]]))
