"""The pictures and the page: the numbers behind them, and that the page needs nothing from outside."""

import re

import pytest
import torch

from sampla.apps.figures import (
    Example,
    Series,
    convergence_figure,
    curves_figure,
    em_figure,
    examples_figure,
    reliability_curve,
    surest_and_least_sure,
)
from sampla.apps.page import Page, Picture, write_html

PNG = b"\x89PNG\r\n\x1a\n"
TRACE = [
    {"precision": [1.0, 2.0], "effective_dimension": [5.0, 3.0], "effective_dimension_error": [0.1, 0.0],
     "passes": 3, "solve_error": 0.04},
    {"precision": [0.5, 2.5], "effective_dimension": [6.0, 3.1], "effective_dimension_error": [0.1, 0.0],
     "passes": 2, "solve_error": 0.03},
]  # fmt: skip


class Row:
    measure = "a <measure>"
    met = False

    def cells(self):
        return ["1", "2"]

    def verdict(self):
        return "not met"


def page(picture):
    return Page(
        "A title", "A summary", ["One paragraph."], [], ["left", "right"], [Row()], ["A note."], "the <certificate>",
        [picture], {"Training": "1 s"}, {"bn.weight": "normalisation layer"}, "The end.",
    )  # fmt: skip


def test_reliability_curve_equals_counting_by_hand():
    probs = torch.tensor([[0.95, 0.05], [0.91, 0.09], [0.42, 0.58], [0.35, 0.65], [0.52, 0.48]])
    labels = torch.tensor([0, 1, 1, 0, 0])
    rows = reliability_curve(probs, labels, bins=10, fewest=1)
    assert [count for _, _, count in rows] == [2, 1, 2]
    confidence, accuracy, _ = zip(*rows, strict=True)
    assert confidence == pytest.approx((0.55, 0.65, 0.93), abs=1e-6)
    assert accuracy == pytest.approx((1.0, 0.0, 0.5))
    assert [count for _, _, count in reliability_curve(probs, labels, bins=10, fewest=2)] == [2, 2]
    assert reliability_curve(probs, labels) == []


def test_the_surest_come_first_and_the_least_sure_are_the_other_end():
    assert surest_and_least_sure(torch.tensor([0.3, 0.1, 0.9, 0.2]), 2) == ([1, 3], [2, 0])


def test_every_picture_is_a_png():
    example = Example(torch.rand(8, 8), 3, 5, 0.4, 1.2, 0.3)
    drawn = [
        em_figure(TRACE, ["all", "other"]),
        convergence_figure(TRACE, [1.0, 0.1, 0.01], 0.05, 0.02),
        convergence_figure([{**row, "solve_history": [1.0, 0.2, 0.04]} for row in TRACE], [0.01], 0.05, 0.02),
        convergence_figure([], [0.0], 0.05, 0.02),
        curves_figure([0, 90], {"a": [Series("network", [1.0, 2.0], "#000000")]}, xlabel="degrees"),
        examples_figure({"Most sure": [example], "Least sure": [example, example]}),
    ]
    assert all(picture.startswith(PNG) for picture in drawn)


def test_the_page_holds_everything_and_asks_for_nothing(tmp_path):
    picture = Picture("em", "The trace", "A caption.", em_figure(TRACE, ["all", "other"]))
    write_html(page(picture), tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    for words in (
        "A title",
        "A summary",
        "One paragraph.",
        "a &lt;measure&gt;",
        "the &lt;certificate&gt;",
        "bn.weight",
    ):
        assert words in html
    assert picture.data_uri in html
    assert "not met" in html
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!data:)", html)
    assert "@import" not in html
    assert "url(" not in html
