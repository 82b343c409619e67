"""Freed memory is kept inside a fit, and the C library's defaults come back afterwards, whatever happens."""

import pytest

from sampla import _allocator
from sampla._allocator import freed_memory_kept


class Recorder:
    """Stands in for the C library."""

    def __init__(self):
        self.calls = []

    def mallopt(self, which, value):
        self.calls.append((which, value))

    def malloc_trim(self, pad):
        self.calls.append(("trim", pad))


@pytest.fixture
def library(monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(_allocator, "_glibc", lambda: recorder)
    return recorder


DEFAULTS = [(-3, 128 * 1024), (-4, 65536), (-1, 128 * 1024), ("trim", 0)]


def test_defaults_come_back_also_after_an_error(library):
    def interrupted():
        with freed_memory_kept():
            assert library.calls == [(-3, 32 * 2**20), (-4, 0), (-1, 2**31 - 1)]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert library.calls[3:] == DEFAULTS


def test_only_the_outermost_use_counts(library):
    with freed_memory_kept():
        with freed_memory_kept():
            pass
        assert len(library.calls) == 3
    assert library.calls[3:] == DEFAULTS


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(_allocator.sys, "platform", "darwin")
    assert _allocator._glibc() is None
    with freed_memory_kept():
        pass
