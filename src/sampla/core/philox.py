"""The counter-based generator Philox4x64-10 in torch's integers, for draws on the device where they are used.

Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3. SC 2011, section 3.3. The 64-bit words are
those of NumPy's Philox. torch has no unsigned arithmetic: int64 holds the bits, sums and products wrap.
"""

import torch
from torch import Tensor

WORDS = 4
"""64-bit words that one value of the counter gives."""
AT_ONCE = 2**22
"""Words that are made at once: each intermediate tensor then takes 8 MiB."""

_MULTIPLIERS = 0xD2E7470EE14C6C93, 0xCA5A826395121157
_INCREMENTS = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B
_ROUNDS = 10
_LOW = 0xFFFFFFFF


def words(key: tuple[int, Tensor], start: int, count: int) -> Tensor:
    """Words start .. start + count of the sequence of each key, as ``numpy.random.Philox(key).random_raw`` gives them.

    Args:
        key: the first word of all keys, and (K,) int64 the second of each; on the device of the result.
        start: number of the first word.
        count: of words.

    Returns:
        (K, count) int64, the bits of unsigned integers.
    """
    counter, skip = divmod(start, WORDS)
    blocks = -(-(skip + count) // WORDS)
    # NumPy counts up before it gives words, so that the first are those of counter 1.
    x0 = torch.arange(counter + 1, counter + 1 + blocks, device=key[1].device)[None]  # broadcast over the keys
    x1 = x2 = x3 = torch.zeros_like(x0)
    k0, k1 = key[0], key[1][:, None]
    for _ in range(_ROUNDS):
        high0, low0 = _product(x0, _MULTIPLIERS[0])
        high1, low1 = _product(x2, _MULTIPLIERS[1])
        x0, x1, x2, x3 = high1 ^ x1 ^ _signed(k0), low1, high0 ^ x3 ^ k1, low0
        k0, k1 = k0 + _INCREMENTS[0], k1 + _signed(_INCREMENTS[1])
    return torch.stack([x0, x1, x2, x3], -1).flatten(1)[:, skip : skip + count]


def _product(x: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """The high and the low 64 bits of the unsigned product, from 32-bit halves."""
    above, below = _shifted(x, 32), x & _LOW
    high, low = factor >> 32, factor & _LOW
    first, second = below * high, above * low
    carried = _shifted(below * low, 32) + (first & _LOW) + (second & _LOW)
    return above * high + _shifted(first, 32) + _shifted(second, 32) + (carried >> 32), x * _signed(factor)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """The unsigned number x shifted to the right by 32 or 11 bits: the sign does not move in."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(word: int) -> int:
    """The int64 of the same 64 bits."""
    word %= 2**64
    return word - 2**64 if word >= 2**63 else word


def uniforms(bits: Tensor) -> Tensor:
    """The middle of the cell of [0, 1) that the upper 53 bits of each word name, in float64."""
    return (_shifted(bits, 11).double() + 0.5) * 2.0**-53
