"""Freed memory is kept inside a fit; afterwards the C library works as it does by itself at best, whatever happens."""

import pytest

from sampla.core import allocator
from sampla.core.allocator import freed_memory_kept


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
    monkeypatch.setattr(allocator, "_glibc", lambda: recorder)
    for name in (*allocator._SETTINGS, allocator._OPTION, "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    return recorder


AFTERWARDS = [(-4, 65536), (-1, 64 * 2**20), ("trim", 0)]


def test_it_ends_also_after_an_error(library):
    def interrupted():
        with freed_memory_kept():
            assert library.calls == [(-3, 32 * 2**20), (-4, 0), (-1, 2**31 - 1)]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert library.calls[3:] == AFTERWARDS


def test_only_the_outermost_use_counts(library):
    with freed_memory_kept():
        with freed_memory_kept():
            pass
        assert len(library.calls) == 3
    assert library.calls[3:] == AFTERWARDS


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(allocator.sys, "platform", "darwin")
    assert allocator._glibc() is None
    with freed_memory_kept():
        pass


@pytest.mark.parametrize(
    ("name", "value"),
    [("MALLOC_TRIM_THRESHOLD_", "1"), ("GLIBC_TUNABLES", "glibc.malloc.mmap_max=9"), ("SAMPLA_KEEP_FREED_MEMORY", "0")],
)
def test_settings_of_the_environment_are_left_alone(library, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with freed_memory_kept():
        pass
    assert library.calls == []
