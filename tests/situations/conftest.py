"""Situations of real users, a file for each kind, each a row: the right value, or the message that says why."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Networks and data drawn inside a test are the same in whatever order tests run."""
    torch.manual_seed(0)
