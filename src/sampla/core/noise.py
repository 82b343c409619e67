"""Standard normals as a pure function of (seed, stream, sample, position).

The draw that belongs to a datum, or to a parameter, does not depend on the batch size, on the number of
samples drawn beside it or on how often it has been asked for: it is read from the counter-based generator
Philox (Salmon et al. 2011) at the position's own counter. On the CPU that is NumPy's, which is faster there; elsewhere
the same words are made on the device (``philox``), so that nothing is copied to it and nothing waits for it.
"""

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

from sampla.core.memory import has_float64
from sampla.core.philox import AT_ONCE, WORDS, uniforms, words

DATA, PRIOR, PROBE, PREDICTIVE, ADJOINT = range(5)
"""Streams: independent families of draws under one seed."""

_STREAM = 48
"""Bits of a key's second word below its stream: those of the sample."""
_AT_ONCE = 2**16
"""Draws that are made at once of several samples: there may be many samples of few draws each, as of a small batch."""


def _normals(seed: int, stream: int, samples: range, start: int, count: int) -> np.ndarray:
    """Entries start .. start + count of the infinite sequences (seed, stream, sample), (K, count), by inversion."""
    counter, skip = divmod(start, WORDS)
    generator = np.random.Philox(key=0, counter=counter)
    state, drawn = generator.state, np.empty((len(samples), count), dtype=np.uint64)
    for row, sample in enumerate(samples):  # one generator at another key: to make each anew takes ten times as long
        state["state"]["key"] = np.array([seed, (stream << _STREAM) | sample], dtype=np.uint64)
        generator.state = state
        drawn[row] = generator.random_raw(skip + count)[skip:]
    return np.asarray(ndtri(((drawn >> np.uint64(11)) + 0.5) * 2.0**-53))


def _normals_there(seed: int, stream: int, samples: range, start: int, count: int, like: Tensor) -> Tensor:
    """The same of all samples, (K, count), on the device of ``like``, a part at a time: up to float64's last digit.

    Only shapes are read here, no values: nothing waits for the device.
    """
    found = like.new_empty(len(samples), count)
    keys = torch.arange(samples.start, samples.stop, device=like.device) | (stream << _STREAM)
    width = max(WORDS, AT_ONCE // max(1, len(samples)))
    for first in range(0, count, width):
        part = found[:, first : first + width]
        drawn = words((seed, keys), start + first, part.shape[1])
        part.copy_(torch.special.ndtri(uniforms(drawn)))
    return found


def standard_normal(seed: int, stream: int, samples: range, start: int, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Draws for the given samples at positions start .. start + prod(shape).

    Devices without float64, such as Apple's, get what the CPU has drawn.

    Returns:
        (len(samples), *shape) in the dtype and on the device of ``like``.
    """
    count = int(np.prod(shape, dtype=np.int64))
    if like.device.type != "cpu" and has_float64(like.device):
        return _normals_there(seed, stream, samples, start, count, like).view(len(samples), *shape)
    found = torch.empty(len(samples), count, dtype=like.dtype)
    together = max(1, _AT_ONCE // max(1, count))
    for first in range(0, len(samples), together):
        rows = samples[first : first + together]
        found[first : first + len(rows)] = torch.from_numpy(_normals(seed, stream, rows, start, count))
    return found.to(like).view(len(samples), *shape)
