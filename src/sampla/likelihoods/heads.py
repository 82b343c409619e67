"""Several outputs of one network, each with a likelihood of its own."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sampla.core.checks import require
from sampla.likelihoods._base import Likelihood, require_plain


class Heads(Likelihood):
    """log p(y | f) = sum over heads of log p_h(y_h | f_h); outputs (n, C), targets (n, T): those of all heads in turn.

    Classes take one column of the targets, other heads as many as the likelihood has targets. ``pred.head(name)`` is
    the predictive of one head. B has a block for each head.

    Args:
        heads: name -> (likelihood, number of its outputs), in the order of the outputs.

    Raises:
        ValueError: for no head, or a head whose noise would have to be learnt.
    """

    def __init__(self, heads: Mapping[str, tuple[Likelihood, int]]) -> None:
        require(len(heads) > 0, "at least one head", "none", "Give name: (likelihood, number of outputs).")
        self.parts = {name: likelihood for name, (likelihood, _) in heads.items()}
        self.sizes = [int(size) for _, size in heads.values()]
        for name, likelihood in self.parts.items():
            known = not likelihood.learns_noise
            fix = "Give the noise precision, as sampla.Gaussian(100.0)."
            require(known, f"a head {name!r} whose noise is known", f"{type(likelihood).__name__} that learns it", fix)
        self.columns = [each.num_targets(size) for each, size in zip(self.parts.values(), self.sizes, strict=True)]

    @property
    def heads(self) -> dict[str, tuple[Likelihood, slice]]:
        stops = [sum(self.sizes[: number + 1]) for number in range(len(self.sizes))]
        places = [slice(stop - size, stop) for stop, size in zip(stops, self.sizes, strict=True)]
        return dict(zip(self.parts, zip(self.parts.values(), places, strict=True), strict=True))

    def log_prob(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self._sum(lambda of, f, y: of.log_prob(f, y), outputs, targets)

    def observation_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self._sum(lambda of, f, y: of.loss(f, y), outputs, targets)

    def _sum(self, each: Callable[[Likelihood, Tensor, Tensor], Tensor], outputs: Tensor, targets: Tensor) -> Tensor:
        total = outputs.new_zeros(len(outputs))
        for of, f, y in zip(self.parts.values(), outputs.split(self.sizes, -1), self._targets(targets), strict=True):
            total = total + each(of, f, y)
        return total

    def curvature_product(self, outputs: Tensor, vectors: Tensor) -> Tensor:
        return self._joined(lambda of, f, v: of.curvature_product(f, v), outputs, vectors)

    def curvature_root_product(self, outputs: Tensor, vectors: Tensor) -> Tensor:
        return self._joined(lambda of, f, v: of.curvature_root_product(f, v), outputs, vectors)

    def curvature_root_transpose_product(self, outputs: Tensor, vectors: Tensor) -> Tensor:
        return self._joined(lambda of, f, v: of.curvature_root_transpose_product(f, v), outputs, vectors)

    def _joined(self, each: Callable[[Likelihood, Tensor, Tensor], Tensor], outputs: Tensor, vectors: Tensor) -> Tensor:
        parts = zip(self.parts.values(), outputs.split(self.sizes, -1), vectors.split(self.sizes, -1), strict=True)
        return torch.cat([each(*part) for part in parts], -1)

    def counted(self, targets: Tensor) -> Tensor | None:
        return self._chosen(lambda of, y: of.counted(y), targets)

    def curvature_weights(self, targets: Tensor) -> Tensor | None:
        return self._chosen(lambda of, y: of.curvature_weights(y), targets)

    def _chosen(self, each: Callable[[Likelihood, Tensor], Tensor | None], targets: Tensor) -> Tensor | None:
        found = [each(of, y) for of, y in zip(self.parts.values(), self._targets(targets), strict=True)]
        if all(part is None for part in found):
            return None
        ones = targets.new_ones(())
        wide = [(ones if p is None else p).expand(len(targets), n) for p, n in zip(found, self.sizes, strict=True)]
        return torch.cat([part.to(torch.promote_types(part.dtype, torch.float32)) for part in wide], -1)

    def _targets(self, targets: Tensor) -> list[Tensor]:
        """Those of each head, in the form that it takes."""
        parts = zip(self.parts.values(), targets.split(self.columns, -1), strict=True)
        return [y if of.class_axis is None else y.squeeze(-1).nan_to_num().long() for of, y in parts]

    def check_targets(self, outputs: Tensor, targets: Tensor) -> None:
        require_plain(targets, "targets of all heads side by side")
        shape, given, total = tuple(outputs.shape), tuple(targets.shape), sum(self.sizes)
        fix = "Put outputs, and targets, side by side in the order of the heads; classes take one column."
        fits = len(shape) == 2 and shape[1] == total
        require(fits, f"outputs (n, {total}) of the heads {', '.join(self.parts)}", f"{shape}", fix)
        expected = (shape[0], sum(self.columns))
        require(given == expected, f"targets {expected} of the heads", f"{given}", fix)
        for name, of, y in zip(self.parts, self.parts.values(), targets.split(self.columns, -1), strict=True):
            whole = of.class_axis is None or bool((y == y.round()).all())
            require(whole, f"class numbers for the head {name!r}", "others", "They may be floating-point, but whole.")
        for of, f, y in zip(self.parts.values(), outputs.split(self.sizes, -1), self._targets(targets), strict=True):
            of.check_targets(f, y)

    def config(self) -> dict[str, Any]:
        heads = [[name, of.config(), size] for (name, of), size in zip(self.parts.items(), self.sizes, strict=True)]
        return {**super().config(), "heads": heads}
