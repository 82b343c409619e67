"""A few of each of what ``make soak`` does in full."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reliability import certificates, flips, kills, predictions


def few_kills(count: int, seed: int, folder: Path) -> dict[str, Any]:
    return kills.trials(count, seed, folder, kinds=("categorical",))


@pytest.mark.filterwarnings("ignore:.*fork")
@pytest.mark.parametrize(
    ("part", "count"),
    [
        (few_kills, 6),
        (flips.trials, 9),
        (predictions.trials, 40),
        (certificates.trials, 8),
        (certificates.reduced_trials, 6),
    ],
)
def test_nothing_is_wrong_in_silence(part: Callable[..., dict[str, Any]], count: int, tmp_path: Path) -> None:
    found = part(count, 3, tmp_path)
    assert found["tried"] == count
    assert found["wrong"] == 0
    assert found["right"] + found["refused"] + found.get("without a reference", 0) == count
    if part not in (flips.trials, certificates.trials, certificates.reduced_trials):
        assert found["right"] == count
