"""Fixtures shared by all tests: the trained networks of cases.py, each built at most once a session."""

import gc

import pytest
import torch

from cases import Problem, build_problem


class _Problems(dict[str, Problem]):
    def __missing__(self, name: str) -> Problem:
        self[name] = build_problem(name)
        return self[name]


@pytest.fixture(scope="session")
def problems() -> dict[str, Problem]:
    """Name of a likelihood case -> the trained Problem, built when first asked for."""
    return _Problems()


@pytest.fixture(scope="session", autouse=True)
def _modules_stay():
    """What is there once all tests are collected, 600,000 objects, is no garbage: Python need not look at it again.

    A full collection takes half a second otherwise, which is more than most tests.
    """
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """The matrices here are too small for several threads to help, and results become the same on every machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
