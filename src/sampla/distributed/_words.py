"""Tensors in words, as processes tell them one another."""

from base64 import b64decode, b64encode
from typing import Any

import torch
from torch import Tensor

_FEW = 1024
"""Bytes of a tensor that is told within a message: an exchange of its own costs more than the words."""


def kind_of(tensor: Tensor) -> list[Any]:
    """Its type and shape."""
    return [str(tensor.dtype), *tensor.shape]


def like(kind: list[Any]) -> Tensor:
    """A tensor of zeros of that type and shape, on the CPU."""
    return torch.zeros(kind[1:], dtype=getattr(torch, kind[0].removeprefix("torch.")))


def spelled(tensor: Tensor) -> str | None:
    """All of the tensor, to the bit; None where it is not small."""
    if tensor.nbytes > _FEW:
        return None
    return b64encode(bytes_of(tensor).numpy().tobytes()).decode()


def read(kind: list[Any], words: str) -> Tensor:
    """The tensor of that type and shape that was ``spelled``, on the CPU."""
    tensor = like(kind)
    if tensor.numel():
        bytes_of(tensor).copy_(torch.frombuffer(bytearray(b64decode(words)), dtype=torch.uint8))
    return tensor


def bytes_of(tensor: Tensor) -> Tensor:
    """The tensor as uint8 (n,), on the CPU: its own memory where it is one piece there."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
