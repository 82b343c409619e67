"""Draws made on a device are those of the CPU: the words of NumPy's Philox to the bit, its normals to a rounding error.

What runs on the device is run here on the CPU; tests/test_second_device.py runs it elsewhere.
"""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from sampla.core import noise
from sampla.core.noise import DATA, PREDICTIVE, PROBE, standard_normal
from sampla.core.philox import uniforms, words

SEEDS = [0, 1, 12345, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1]
LIKE = torch.empty(0, dtype=torch.float64)


def there(seed: int, stream: int, samples: range, start: int, count: int, like: Tensor = LIKE) -> Tensor:
    return noise._normals_there(seed, stream, samples, start, count, like)


def here(seed: int, stream: int, samples: range, start: int, count: int, like: Tensor = LIKE) -> Tensor:
    return standard_normal(seed, stream, samples, start, (count,), like)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("start", "count"), [(0, 1), (0, 64), (1, 2), (3, 9), (5, 4), (2**31 - 3, 7), (2**40 + 1, 10)])
def test_words_are_numpys_to_the_bit(seed: int, start: int, count: int) -> None:
    seconds = [0, 1, (3 << 48) | 17, 2**62 + 2**33 + 5]
    found = words((seed, torch.tensor(seconds)), start, count).numpy().view(np.uint64)
    for row, second in zip(found, seconds, strict=True):
        key = np.array([seed, second], dtype=np.uint64)
        expected = np.random.Philox(key=key, counter=start // 4).random_raw(start % 4 + count)[start % 4 :]
        assert np.array_equal(row, expected)


def test_words_of_the_reference_implementation() -> None:
    """The known answer of Random123 (kat_vectors, philox4x64-10) for counters and keys of zero, NumPy's counter 0."""
    known = [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]
    found = words((0, torch.zeros(1, dtype=torch.int64)), -4, 4).numpy().view(np.uint64)
    assert [int(word) for word in found[0]] == known


def test_uniforms_are_in_the_middle_of_their_cells() -> None:
    bits = torch.tensor([0, -1, 1 << 11, -(2**63)])
    assert uniforms(bits).tolist() == [2.0**-54, 1.0, 1.5 * 2.0**-53, 0.5 + 2.0**-54]


@pytest.mark.parametrize("stream", [DATA, PROBE, PREDICTIVE])
@pytest.mark.parametrize("seed", [0, 7, 2**63 + 1])
@pytest.mark.parametrize(("samples", "start", "count"), [(range(3), 0, 1000), (range(5, 7), 13, 501), (range(1), 2, 0)])
def test_normals_are_those_of_the_cpu(seed: int, stream: int, samples: range, start: int, count: int) -> None:
    found, expected = there(seed, stream, samples, start, count), here(seed, stream, samples, start, count)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)
    single = there(seed, stream, samples, start, count, LIKE.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single, expected.float(), rtol=2e-7, atol=0)


def test_parts_of_a_long_draw_fit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = there(3, DATA, range(4), 5, 203)
    monkeypatch.setattr(noise, "AT_ONCE", 40)
    assert torch.equal(there(3, DATA, range(4), 5, 203), whole)


def test_nothing_is_copied_to_the_device_or_read_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake tensor has no values, and NumPy cannot be asked for any."""
    monkeypatch.setattr(np.random, "Philox", None)
    with FakeTensorMode():
        found = standard_normal(3, DATA, range(4), 5, (10, 3), torch.empty(0, device="meta"))
    assert (found.shape, found.device.type, found.dtype) == ((4, 10, 3), "meta", torch.float32)


def test_a_device_without_float64_gets_what_the_cpu_has_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "has_float64", lambda _: False)
    monkeypatch.setattr(noise, "words", None)
    asked = (3, DATA, range(2), 0, (5,))
    assert standard_normal(*asked, torch.empty(0, device="meta")).device.type == "meta"
