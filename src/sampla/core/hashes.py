"""Hashes of data: whether two passes gave the same, in whatever order and however padded.

A hash is of the bits of one datum, its inputs and its target together, so that pairs that were torn apart are noticed.
What a mask leaves out does not enter it, nor how long the padding is.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from hashlib import blake2b
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from sampla.core.inputs import named_leaves, object_leaves
from sampla.core.typing import Inputs, Opaque

Counted: TypeAlias = Callable[[Tensor], Tensor | None]
"""Which targets a likelihood counts, as ``Likelihood.counted`` says it."""

_DECODER = "decoder_"
"""How the names of entries begin that a decoder reads, as long as the targets, not as the other entries."""
_FEW = 2**12
"""Numbers in a datum up to which the weights of their places are kept."""
_TOGETHER = 2**12
"""Hashes that are summed at once, at least."""
_NARROW = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def wrap(value: int) -> int:
    """As an unsigned number of 64 bits."""
    return value % 2**64


def mix(x: Tensor) -> Tensor:
    """Finaliser of SplitMix64 (Steele et al. 2014) on int64, whose products wrap."""
    x = (x ^ (x >> 30)) * -4658895280553007687
    x = (x ^ (x >> 27)) * -7723592293110705685
    return x ^ (x >> 31)


class Tally:
    """Sums over the hashes of a pass: one that does not depend on their order, and one that does.

    Those of small batches wait for each other: to sum each alone takes as long as to hash it.
    """

    def __init__(self) -> None:
        self._content, self._order, self._summed = 0, 0, 0
        self._waiting: list[Tensor] = []
        self._number = 0

    def add(self, hashes: Tensor) -> None:
        """Take (n,) hashes of the next data."""
        self._waiting.append(hashes)
        self._number += len(hashes)
        if self._number >= _TOGETHER:
            self._sum()

    def sums(self) -> tuple[int, int]:
        """Both sums over all that has been taken."""
        if self._waiting:
            self._sum()
        return self._content, self._order

    def _sum(self) -> None:
        hashes, self._waiting, self._number = torch.cat(self._waiting), [], 0
        places = torch.arange(self._summed, self._summed + len(hashes))
        self._content = wrap(self._content + int(mix(hashes).sum()))
        self._order = wrap(self._order + int(mix(hashes + mix(places)).sum()))
        self._summed += len(hashes)


def datum_hashes(
    inputs: Inputs, targets: Tensor, counted: Counted | None = None, sides: Mapping[str, bool] | None = None
) -> Tensor:
    """(n,) int64: a hash of the bits of each datum and its target.

    Args:
        inputs: of n data.
        targets: (n, ...).
        counted: which targets count; None: all. The others do not enter the hash.
        sides: what ``padding_sides`` said of the first data. Padding does not enter the hash, nor does its length.
    """
    size, device = targets.shape[0], targets.device
    total, unpadded, leaves = torch.zeros(size, dtype=torch.int64, device=device), None, 0
    asked = None if counted is None else counted(targets)
    if asked is not None:
        asked = asked.reshape(targets.shape) != 0 if asked.numel() == targets.numel() else None
    if isinstance(inputs, (Opaque, list)):
        total = mix(_object_hashes(inputs, size).to(device))
    else:
        places = _Unpadded(inputs, sides or {}, asked)
        for leaves, (name, leaf) in enumerate(named_leaves(inputs), start=1):
            k = leaves - 1
            if isinstance(leaf, Tensor):
                bits, unpadded = _bits(leaf), places(name, leaf)
                if unpadded is not None:
                    bits = bits.where(unpadded.repeat_interleave(bits.shape[1] // unpadded.shape[1], 1), 0)
                total = mix(total + _weighted(bits, k, unpadded))
            else:
                total = mix(total + _constant(leaf, k))
        unpadded = places.of_targets(targets)
    bits = _bits(targets)
    if asked is not None:
        bits = bits.where(asked.reshape(size, -1), 0)
    return mix(total + _weighted(bits, leaves, unpadded))


def earlier_fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """The 64-bit hash of a network's weights in files from before ``checkpoint.digest`` was used for them."""
    total = torch.zeros((), dtype=torch.int64)
    for name in sorted(tensors):
        bits = _bits(strided(tensors[name].detach()).reshape(1, -1).cpu())
        weights = mix(torch.arange(1, bits.shape[1] + 1) + sum(name.encode()))
        total = mix(total + (bits * weights).sum())
    return f"{wrap(int(total)):016x}"


def padding_sides(inputs: Inputs) -> dict[str, bool]:
    """Which value of each mask (n, L) among the entries of a mapping means padding, as far as these data tell.

    A name that says it is taken at its word: "...attention_mask" has 1 for what is there, "...padding_mask" for what is
    not. Of any other "...mask" it is the side on which all entries that go with it hold one and the same value.
    """
    sides = {name: name.endswith(("padding_mask", "pad_mask")) for name in _masks(inputs)}
    for name, mask in _masks(inputs).items():
        if sides[name] or name.endswith("attention_mask"):
            continue
        entries = [_bits(leaf).view(*mask.shape, -1) for other, leaf in _entries(inputs, name, sides) if other != name]
        alike = [
            bool(side.any()) and all(bool((rows[side] == rows[side][0]).all()) for rows in entries)
            for side in (mask == 0, mask != 0)
        ]
        if entries and alike[0] != alike[1]:
            sides[name] = alike[1]
        else:
            del sides[name]
    return sides


class _Unpadded:
    """Which places of the entries of a mapping are data, by their masks and what of these is padding."""

    def __init__(self, inputs: Inputs, sides: Mapping[str, bool], asked: Tensor | None) -> None:
        self._sides, self._asked, self._unpadded = sides, asked, {}
        self._decodes = isinstance(inputs, Mapping) and any(str(name).startswith(_DECODER) for name in inputs)
        for name, mask in _masks(inputs).items():
            if name in sides:
                unpadded = (mask != 0) != sides[name]
                if not name.endswith(("attention_mask", "padding_mask", "pad_mask")):
                    unpadded = _with_what_varies(unpadded, [leaf for _, leaf in _entries(inputs, name, sides)])
                self._unpadded[name] = unpadded

    def __call__(self, name: str, leaf: Any) -> Tensor | None:
        """(n, L) for an entry; None where no mask goes with it."""
        mask = _mask_of(name, self._sides)
        if mask is None and name.startswith(_DECODER) and isinstance(leaf, Tensor) and self._asked is not None:
            return _until_the_last(self._asked) if leaf.shape[:2] == self._asked.shape else None
        fits = mask in self._unpadded and isinstance(leaf, Tensor) and leaf.shape[:2] == self._unpadded[mask].shape
        return self._unpadded[mask] if fits and mask is not None else None

    def of_targets(self, targets: Tensor) -> Tensor | None:
        """The same of the targets, which are the decoder's where there is one."""
        return self(_DECODER if self._decodes else "", targets)


def _until_the_last(asked: Tensor) -> Tensor:
    """(n, L) what a decoder may have read of each datum by the last of its targets that counts."""
    return asked.flip(1).cumsum(1).flip(1) > 0


def _masks(inputs: Inputs) -> dict[str, Tensor]:
    """The entries (n, L) of ones and zeros with a name that ends so."""
    entries = inputs.items() if isinstance(inputs, Mapping) else ()
    named = {str(name): leaf for name, leaf in entries if str(name).endswith("mask") and isinstance(leaf, Tensor)}
    return {name: mask for name, mask in named.items() if mask.ndim == 2 and bool(((mask == 0) | (mask == 1)).all())}


def _mask_of(name: str, masks: Mapping[str, Any]) -> str | None:
    """The mask of an entry: the only one, or that whose name begins as the entry's does; a decoder's is its own."""
    decodes = name.startswith(_DECODER)
    known = [mask for mask in masks if not decodes or mask.startswith(_DECODER)]
    fitting = [mask for mask in known if name.startswith(_beginning(mask)) or len(masks) == 1]
    return max(fitting, key=lambda each: len(_beginning(each)), default=None)


def _entries(inputs: Inputs, mask: str, masks: Mapping[str, Any]) -> list[tuple[str, Tensor]]:
    """The entries that go with a mask, itself among them."""
    shape = _masks(inputs)[mask].shape
    return [
        (name, leaf)
        for name, leaf in named_leaves(inputs)
        if isinstance(leaf, Tensor) and leaf.shape[:2] == shape and _mask_of(name, masks) == mask
    ]


def _with_what_varies(unpadded: Tensor, entries: list[Tensor]) -> Tensor:
    """All places of those data that hold more than one value on the side that is said to be padding."""
    info, padding = torch.iinfo(torch.int64), ~unpadded.unsqueeze(2)
    varies = torch.zeros(len(unpadded), 1, dtype=torch.bool, device=unpadded.device)
    for entry in entries:
        rows = _bits(entry).view(*unpadded.shape, -1)
        low, high = rows.where(padding, info.max).amin(1), rows.where(padding, info.min).amax(1)
        varies |= (low < high).any(1, keepdim=True)
    return unpadded | varies


def _beginning(mask: str) -> str:
    """What comes before "mask", "attention_mask" and the like in a name."""
    for ending in ("attention_mask", "key_padding_mask", "padding_mask", "pad_mask", "mask"):
        if mask.endswith(ending):
            return mask.removesuffix(ending).rstrip("_")
    return mask


def _weighted(bits: Tensor, k: int, unpadded: Tensor | None = None) -> Tensor:
    """(n,) sum of the bits (n, d), each times a number of its place, counted from the first place that is kept."""
    count, device = bits.shape[1], bits.device
    if unpadded is None and count <= _FEW and device.type == "cpu":
        return (bits * _few_weights(count, k)).sum(1)
    places = _places(count, k, device)
    if unpadded is not None:
        places = places - unpadded.int().argmax(1, keepdim=True) * (count // unpadded.shape[1])
    return (bits * mix(places)).sum(1)


def _places(count: int, k: int, device: torch.device) -> Tensor:
    return torch.arange(1, count + 1, device=device) + (k << 40)


@lru_cache(maxsize=32)
def _few_weights(count: int, k: int) -> Tensor:
    """Kept, because for a small batch to make them takes longer than the sum."""
    return mix(_places(count, k, torch.device("cpu")))


def _object_hashes(inputs: Opaque | list[Any], size: int) -> Tensor:
    """(n,) hashes of the objects of a list, or of the data that an object says it is made of; else of it as a whole."""
    objects: Any = inputs
    if isinstance(inputs, Opaque):
        separate = getattr(inputs.content, "to_data_list", None)
        objects = list(separate()) if callable(separate) else []
        if len(objects) != size:
            return _object_hash(inputs) + torch.arange(size)
    return torch.stack([_object_hash(each) for each in objects])


def _object_hash(thing: Any) -> Tensor:
    total = torch.zeros((), dtype=torch.int64)
    for k, leaf in enumerate(object_leaves(thing)):
        if isinstance(leaf, (Tensor, np.ndarray)):
            tensor = leaf if isinstance(leaf, Tensor) else _of_array(leaf)
            bits = _bits(strided(tensor).reshape(1, -1))
            total = mix(total + _weighted(bits, k)[0].cpu())
        else:
            total = mix(total + _constant(leaf, k))
    return total


def _of_array(array: np.ndarray) -> Tensor:
    return torch.frombuffer(bytearray(array.tobytes()), dtype=torch.uint8) if array.size else torch.zeros(0)


def strided(tensor: Tensor) -> Tensor:
    """All numbers of a tensor of any layout, strided: of a sparse one its indices and values in one row."""
    if tensor.is_nested:
        return torch.cat([part.flatten() for part in tensor.unbind()])
    if tensor.is_quantized or tensor.is_mkldnn:  # torch gives no view of their bytes
        return tensor.dequantize() if tensor.is_quantized else tensor.to_dense()
    if tensor.layout == torch.strided:
        return tensor
    entries = tensor.to_sparse_coo().coalesce()
    return torch.cat([entries.indices().flatten(), _bits(entries.values().reshape(1, -1)).flatten()])


def _constant(value: Any, k: int) -> int:
    """A number for a value that is no tensor, in the range of int64."""
    digest = blake2b(f"{k} {value!r}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, signed=True)


def _bits(tensor: Tensor) -> Tensor:
    """The bits of (n, ...) as (n, d) int64."""
    flat = tensor.detach()
    if flat.is_complex():
        flat = torch.view_as_real(flat.resolve_conj())
    flat = flat.reshape(tensor.shape[0], -1).contiguous()
    if flat.is_floating_point():
        flat = flat.view(_NARROW[flat.element_size()])
    return flat.to(torch.int64)
