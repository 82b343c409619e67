"""The two ways in which the products of a network can be taken, and what is to be said about the one chosen."""

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias

DifferentiationMode: TypeAlias = Literal["forward", "double-reverse"]
FORWARD: DifferentiationMode = "forward"
DOUBLE_REVERSE: DifferentiationMode = "double-reverse"

_REASONS = (
    ("forward AD with (\\S+) that", "{} has no forward derivative"),
    ("forward-mode AD with (\\S+) that", "{} has no forward derivative"),
    ("setup_context", "an autograd.Function has no setup_context"),
    ("the jvp function", "an autograd.Function has no jvp"),
    ("generate_vmap_rule", "an autograd.Function has no rule for vmap"),
    ("Tensor.requires_grad_", "it takes gradients of its own"),
    ("saved tensor hooks", "torch.utils.checkpoint does not go with torch.func"),
    ("derivative for '?([\\w:]+)'? is not implemented", "{} has no derivative"),
    ("once_differentiable", "an autograd.Function may be differentiated once only"),
)
"""What torch's message contains -> the reason in a few words."""


@dataclass(frozen=True)
class Products:
    """How phi v and phi' u are computed for one network; goes into a posterior's file as it is."""

    mode: DifferentiationMode = FORWARD
    """Forward mode takes phi v by a jvp; double reverse mode as d/du (phi' u)' v, for which two vjps do."""
    reason: str = ""
    """Why it is not forward mode."""
    stacked: bool = True
    """Whether all K vectors go through together."""
    shared: bool = True
    """Whether one forward serves both products in forward mode: reverse mode through the jvps."""
    both: bool = False
    """Whether either would do in forward mode, so that the faster can be chosen."""
    laid: bool = False
    """Whether convolutions have their channels last and have taken in the normalisation that follows them."""
    math_attention: bool = False
    """Whether the network asks for an attention kernel, and gets the mathematical form, which has all derivatives."""
    lifted: bool = False
    """Whether the network is linearised with its coarse types, bfloat16 and float16, made float32."""
    limit: str = ""
    """What is to be said about its own type."""

    @property
    def description(self) -> str:
        """The same in one line, for a report."""
        words = "forward mode" if self.mode == FORWARD else f"double reverse mode, because {self.reason}"
        words += "" if self.stacked else "; one vector at a time"
        words += "; a forward for each product" if self.mode == FORWARD and not self.shared else ""
        words += "; channels last" if self.laid else ""
        words += f"; {self.limit}" if self.limit else ""
        return words + ("; attention in its mathematical form" if self.math_attention else "")


def short_reason(error: BaseException) -> str:
    """What torch said, in a few words if it is known, else its first line."""
    text = str(error.__cause__ or error)
    for pattern, words in _REASONS:
        found = re.search(pattern, text)
        if found:
            return words.format(*found.groups())
    return text.partition("\n")[0][:200] or type(error).__name__
