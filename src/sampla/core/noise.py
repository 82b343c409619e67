"""Standard normals as a pure function of (seed, stream, sample, position).

The draw that belongs to a datum, or to a parameter, does not depend on the batch size, on the number of
samples drawn beside it or on how often it has been asked for: it is read from the counter-based generator
Philox (Salmon et al. 2011, NumPy's implementation) at the position's own counter.
"""

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

DATA, PRIOR, PROBE, PREDICTIVE, ADJOINT = range(5)
"""Streams: independent families of draws under one seed."""

_WORDS_PER_COUNTER = 4  # Philox4x64 gives four 64-bit words for each counter value


def _normals(seed: int, stream: int, sample: int, start: int, count: int) -> np.ndarray:
    """Entries start .. start + count of the infinite sequence (seed, stream, sample), by inversion."""
    counter, skip = divmod(start, _WORDS_PER_COUNTER)
    generator = np.random.Philox(key=[seed, (stream << 48) | sample], counter=counter)
    words = generator.random_raw(skip + count)[skip:]
    return np.asarray(ndtri(((words >> np.uint64(11)) + 0.5) * 2.0**-53))


def standard_normal(seed: int, stream: int, samples: range, start: int, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Draws for the given samples at positions start .. start + prod(shape).

    Returns:
        (len(samples), *shape) in the dtype and on the device of ``like``.
    """
    count = int(np.prod(shape, dtype=np.int64))
    rows = [torch.from_numpy(_normals(seed, stream, k, start, count)) for k in samples]
    return torch.stack(rows).to(like).view(len(samples), *shape)
