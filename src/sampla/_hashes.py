"""Hashes of data: whether two passes gave the same, in whatever order and however padded.

A hash is of the bits of one datum, its inputs and its target together, so that pairs that were torn apart are noticed.
What a mask leaves out does not enter it, nor how long the padding is.
"""

from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from sampla._inputs import named_leaves, object_leaves
from sampla._typing import Inputs, Whole

Counted: TypeAlias = Callable[[Tensor], Tensor | None]
"""Which targets a likelihood counts, as ``Likelihood.counted`` says it."""

_NARROW = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def wrap(value: int) -> int:
    """As an unsigned number of 64 bits."""
    return value % 2**64


def mix(x: Tensor) -> Tensor:
    """Finaliser of SplitMix64 (Steele et al. 2014) on int64, whose products wrap."""
    x = (x ^ (x >> 30)) * -4658895280553007687
    x = (x ^ (x >> 27)) * -7723592293110705685
    return x ^ (x >> 31)


def datum_hashes(inputs: Inputs, targets: Tensor, counted: Counted | None = None) -> Tensor:
    """(n,) int64: a hash of the bits of each datum and its target.

    Args:
        inputs: of n data.
        targets: (n, ...).
        counted: which targets count; None: all. The others do not enter the hash.
    """
    size, device = targets.shape[0], targets.device
    total, kept, leaves = torch.zeros(size, dtype=torch.int64, device=device), None, 0
    if isinstance(inputs, (Whole, list)):
        total = mix(_object_hashes(inputs, size).to(device))
    else:
        masks = _Masks(inputs)
        for leaves, (name, leaf) in enumerate(named_leaves(inputs), start=1):
            k = leaves - 1
            if isinstance(leaf, Tensor):
                bits, kept = _bits(leaf), masks.kept(name, leaf)
                if kept is not None:
                    bits = bits.where(kept.repeat_interleave(bits.shape[1] // kept.shape[1], 1), 0)
                total = mix(total + _weighted(bits, k, kept))
            else:
                total = mix(total + _constant(leaf, k))
        kept = masks.kept("", targets)
    bits = _bits(targets)
    asked = None if counted is None else counted(targets)
    if asked is not None and asked.numel() == targets.numel():
        bits = bits.where(asked.reshape(size, -1) != 0, 0)
    return mix(total + _weighted(bits, leaves, kept))


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """A hexadecimal hash of named tensors: tells one network's weights from another's."""
    total = torch.zeros((), dtype=torch.int64)
    for name in sorted(tensors):
        bits = _bits(tensors[name].detach().reshape(1, -1).cpu())
        weights = mix(torch.arange(1, bits.shape[1] + 1) + sum(name.encode()))
        total = mix(total + (bits * weights).sum())
    return f"{wrap(int(total)):016x}"


class _Masks:
    """The masks (n, L) among the entries of a mapping, and which places of each datum they leave.

    A mask whose name says what it is ("...attention_mask": 1 for what is there; "...padding_mask": 0 for it) is taken
    at its word. Of any other "...mask" (which of its values means padding?) that side is left out which holds one and
    the same value all along a datum in all the entries it goes with: what is lost to the hash is padding, and no data.
    """

    def __init__(self, inputs: Inputs) -> None:
        self._kept: dict[str, Tensor] = {}
        masks = inputs.items() if isinstance(inputs, Mapping) else ()
        for name, mask in masks:
            usual = isinstance(mask, Tensor) and mask.ndim == 2 and str(name).endswith("mask")
            if usual and bool(((mask == 0) | (mask == 1)).all()):
                self._kept[str(name)] = mask == 0 if _says_padding(name) else mask != 0
        for name in list(self._kept):
            if not (_says_padding(name) or name.endswith("attention_mask")):
                leaves = [(other, leaf) for other, leaf in named_leaves(inputs) if other != name]
                entries = [leaf for other, leaf in leaves if self._of(other, leaf) == name]
                self._kept[name] = _without_constant_side(self._kept[name], entries)

    def kept(self, name: str, leaf: Any) -> Tensor | None:
        """(n, L) which places of an entry are data; None where no mask goes with it."""
        mask = self._of(name, leaf)
        return None if mask is None else self._kept[mask]

    def _of(self, name: str, leaf: Any) -> str | None:
        """The mask of an entry: that whose name begins as the entry's does, if its shape is the entry's first axes."""
        fitting = [mask for mask in self._kept if name.startswith(_beginning(mask))]
        mask = max(fitting, key=lambda each: len(_beginning(each)), default=None)
        fits = mask is not None and isinstance(leaf, Tensor) and leaf.shape[:2] == self._kept[mask].shape
        return mask if fits else None


def _without_constant_side(kept: Tensor, entries: list[Tensor]) -> Tensor:
    """The places of a mask less the side, if there is one, on which every entry of a datum is constant."""
    if not entries:
        return torch.ones_like(kept)
    plain = []
    info = torch.iinfo(torch.int64)
    for side in (~kept, kept):
        alike = torch.ones(len(kept), 1, dtype=torch.bool, device=kept.device)
        for entry in entries:
            rows, here = _bits(entry).view(*kept.shape, -1), side.unsqueeze(2)
            low, high = rows.where(here, info.max).amin(1), rows.where(here, info.min).amax(1)
            alike &= (low >= high).all(1, keepdim=True)
        plain.append(alike)
    return torch.where(plain[0], kept, ~(plain[1] & kept))


def _says_padding(name: Any) -> bool:
    return str(name).endswith(("padding_mask", "pad_mask"))


def _beginning(mask: str) -> str:
    """What comes before "mask", "attention_mask" and the like in a name."""
    for ending in ("attention_mask", "key_padding_mask", "padding_mask", "pad_mask", "mask"):
        if mask.endswith(ending):
            return mask.removesuffix(ending).rstrip("_")
    return mask


def _weighted(bits: Tensor, k: int, kept: Tensor | None = None) -> Tensor:
    """(n,) sum of the bits (n, d), each times a number of its place, counted from the first place that is kept."""
    places = torch.arange(1, bits.shape[1] + 1, device=bits.device) + (k << 40)
    if kept is not None:
        places = places - kept.int().argmax(1, keepdim=True) * (bits.shape[1] // kept.shape[1])
    return (bits * mix(places)).sum(1)


def _object_hashes(inputs: Whole | list[Any], size: int) -> Tensor:
    """(n,) hashes of the objects of a list, or of the data that an object says it is made of; else of it as a whole."""
    objects: Any = inputs
    if isinstance(inputs, Whole):
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
            bits = _bits(_strided(tensor).reshape(1, -1))
            total = mix(total + _weighted(bits, k)[0].cpu())
        else:
            total = mix(total + _constant(leaf, k))
    return total


def _of_array(array: np.ndarray) -> Tensor:
    return torch.frombuffer(bytearray(array.tobytes()), dtype=torch.uint8) if array.size else torch.zeros(0)


def _strided(tensor: Tensor) -> Tensor:
    """A sparse tensor as its indices and values in one row."""
    if tensor.is_nested:
        return torch.cat([part.flatten() for part in tensor.unbind()])
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
