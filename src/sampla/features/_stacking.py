"""Linear maps that take K vectors at once under vmap, and are told apart from what does not vary with the vector."""

from typing import Any

from torch import Tensor
from torch.autograd import Function


class Stacking(Function):
    """A map that is linear in its first arguments; under vmap the K of them go to ``stacked`` together."""

    varying = 1
    """How many of the arguments vary with the vector."""

    @classmethod
    def forward(cls, *args: Any) -> Tensor:
        """For one vector."""
        lifted = [None if each is None else each[None] for each in args[: cls.varying]]
        return cls.stacked(*lifted, *args[cls.varying :])[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        """For K vectors, as torch.func asks for them."""
        require_constant(in_dims[cls.varying :])
        moved = [_first(each, place, info.batch_size) for each, place in zip(args, in_dims, strict=True)]
        return cls.stacked(*moved[: cls.varying], *args[cls.varying :]), 0

    @staticmethod
    def stacked(*args: Any) -> Tensor:
        """For K vectors, along the first axis of the arguments that vary."""
        raise NotImplementedError


def require_constant(in_dims: tuple[int | None, ...]) -> None:
    """Refuse what varies with the vector where it must not, as in a network that uses vmap itself."""
    if any(place is not None for place in in_dims):
        raise NotImplementedError("what is linearised varies with the vector, as under a vmap of the network's own")


def _first(tensor: Tensor | None, place: int | None, count: int) -> Tensor | None:
    if not isinstance(tensor, Tensor):
        return tensor
    return tensor.expand(count, *tensor.shape) if place is None else tensor.movedim(place, 0)
