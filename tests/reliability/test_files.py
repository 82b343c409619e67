"""Files under attack: a flipped bit never loads as other numbers, and writing leaves nothing and nobody in the way."""

import os
import random
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sampla.core import checkpoint

TENSORS = {"samples": torch.arange(24.0).reshape(4, 6), "integers": torch.arange(5), "empty": torch.zeros(0, 3)}
FACTS = {"alpha": 0.5, "names": ["a.weight", "b"], "trace": [{"change": 0.25}]}


def equal(found: tuple) -> bool:
    tensors, facts = found
    same = all(t.dtype == tensors[n].dtype and torch.equal(t, tensors[n]) for n, t in TENSORS.items())
    return same and facts == FACTS and tensors.keys() == TENSORS.keys()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "file.safetensors"
    checkpoint.save(path, TENSORS, FACTS)
    return path


def test_what_is_saved_is_loaded(saved: Path) -> None:
    assert equal(checkpoint.load(saved))
    assert os.listdir(saved.parent) == [saved.name]


def test_a_flipped_bit_is_refused_or_harmless(saved: Path) -> None:
    """Every byte once, with a random bit: padding may change, numbers and facts may not."""
    whole, choose = saved.read_bytes(), random.Random(0)
    refused = 0
    for place in range(len(whole)):
        spoiled = bytearray(whole)
        spoiled[place] ^= 1 << choose.randrange(8)
        saved.write_bytes(spoiled)
        try:
            found = checkpoint.load(saved)
        except ValueError as error:
            assert "damaged" in str(error) or "expected a file of format" in str(error)  # noqa: PT017
            refused += 1
        else:
            assert equal(found), f"bit flipped in byte {place}"
    assert refused > 0.9 * len(whole)


def test_files_from_before_the_checksum_are_read(tmp_path: Path) -> None:
    path = tmp_path / "old.safetensors"
    save_file(TENSORS, path, {"format": "sampla-1", "facts": '{"alpha": 0.5}'})
    assert checkpoint.load(path)[1] == {"alpha": 0.5}


def test_a_link_stays_a_link_and_the_umask_holds(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    link = tmp_path / "posterior.safetensors"
    link.symlink_to(tmp_path / "store" / "real.safetensors")
    before = os.umask(0o027)
    try:
        checkpoint.save(link, TENSORS, FACTS)
    finally:
        os.umask(before)
    assert link.is_symlink()
    assert equal(checkpoint.load(link))
    assert stat.S_IMODE((tmp_path / "store" / "real.safetensors").stat().st_mode) == 0o640


def test_what_a_killed_writer_left_is_removed_and_a_living_one_is_not_disturbed(saved: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    mine, host = checkpoint._writer(), checkpoint.socket.gethostname()
    dead = saved.with_name(f".{saved.name}.{host}.{gone.pid}.1.partial")
    alive = saved.with_name(f".{saved.name}.{host}.{os.getppid()}.1.partial")
    elsewhere = saved.with_name(f".{saved.name}.another-host.{gone.pid}.1.partial")
    for left in (dead, alive, elsewhere):
        left.write_bytes(b"half")
    checkpoint.save(saved, TENSORS, FACTS)
    assert not dead.exists()
    assert alive.exists()
    assert elsewhere.exists()
    assert str(os.getpid()) in mine


def test_threads_that_write_and_read_one_file_never_see_a_mixture(tmp_path: Path) -> None:
    path, wrong = tmp_path / "file.safetensors", []
    checkpoint.save(path, {"x": torch.zeros(1000)}, {"value": 0.0})

    def write(value: float) -> None:
        for _ in range(15):
            checkpoint.save(path, {"x": torch.full((1000,), value)}, {"value": value})

    def read() -> None:
        for _ in range(40):
            tensors, facts = checkpoint.load(path)
            if not bool((tensors["x"] == facts["value"]).all()):
                wrong.append(facts)

    threads = [threading.Thread(target=write, args=(float(v),)) for v in (1, 2)]
    threads += [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert os.listdir(tmp_path) == [path.name]
