"""Recipes of docs/extending.md, each followed as it stands there, and what it gives checked by another way."""

import re
from math import hypot
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from experiments.common.metrics import MEASURES

from sampla.tomography import FunctionOperator
from test_docs import snippets

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"


def followed(title: str) -> dict[str, Any]:
    """The names that the snippets of one section leave behind."""
    (section,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {"torch": torch}
    torch.manual_seed(0)
    for source in snippets(section):
        exec(compile(source, title, "exec"), names)
    return names


def test_a_column_in_an_experiments_table(tmp_path, monkeypatch, capsys):
    """Its value is p_y / |p|, it is in the table, and nothing was fitted or scored again."""
    before = dict(MEASURES)
    monkeypatch.chdir(tmp_path)
    names = followed("A column in an experiment's table")
    probs, labels = names["probs"].double().numpy(), names["labels"].numpy()
    expected = np.mean([p[y] / np.sqrt(np.sum(p**2)) for p, y in zip(probs, labels, strict=True)])
    row = names["store"].rows["network"]
    value, without = row["spherical"]["clean"][""]
    assert value == pytest.approx(expected, rel=1e-6)
    assert len(without) == 20
    assert row["fit_seconds"] == 1.0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split(" | ")[1:] == ["NLL", "spherical |"]
    assert f"**{expected:.4f} ± " in printed[2]
    assert before == MEASURES


def chord(source: np.ndarray, direction: np.ndarray, half: float) -> float:
    """Length of a ray in the square of this half width about the origin: between entering and leaving both strips."""
    with np.errstate(divide="ignore"):
        sides = np.sort((np.array([[-half], [half]]) - source) / direction, axis=0)
    return max(0.0, sides[1].min() - sides[0].max())


@pytest.fixture(scope="module")
def scan() -> dict[str, Any]:
    return followed("A scan geometry")


def test_rays_of_a_scan_geometry_are_as_long_as_the_image_is_wide(scan):
    rays = zip(scan["sources"], scan["directions"], strict=True)
    expected = np.array([chord(source, direction, scan["side"] / 2) for source, direction in rays])
    found = scan["operator"].forward(torch.ones(1, 16, 16))[0].numpy()
    assert expected.max() > 16
    np.testing.assert_allclose(found, expected, atol=2 * 80 / 400)
    assert np.abs(found - expected).mean() < 0.1
    middle = len(scan["fan"]) // 2
    assert hypot(*scan["sources"][middle]) == pytest.approx(scan["radius"])
    across = scan["operator"].scipy[[middle]].toarray().reshape(16, 16)  # straight up, between two columns
    assert set(np.flatnonzero(across.sum(0))) <= {7, 8}


def test_products_of_a_scan_geometry_are_adjoint(scan):
    operator, generator = scan["operator"].to(torch.float64), torch.Generator().manual_seed(1)
    images = torch.randn(3, 16, 16, generator=generator, dtype=torch.float64)
    cotangents = torch.randn(3, operator.num_measurements, generator=generator, dtype=torch.float64)
    pushed = (operator.forward(images) * cotangents).sum(1)
    torch.testing.assert_close(pushed, (operator.adjoint(cotangents) * images).sum((1, 2)))
    with pytest.raises(ValueError, match="adjoint"):
        FunctionOperator(operator.forward, lambda u: operator.adjoint(u).mT, (16, 16), 168, operator.like)


def test_a_scan_geometry_is_reconstructed(scan):
    image, found = scan["image"], scan["reconstruction"]
    assert found.deviations.shape == (16, 16, 16)
    assert float((found.mean - image).square().mean()) < 0.5 * float((image - image.mean()).square().mean())
    assert float(found.std.min()) > 0
