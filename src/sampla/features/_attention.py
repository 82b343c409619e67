"""Attention among tokens whose derivatives take K vectors at once.

    P = softmax(s q k'),  y = P v,
    dy = dP v + P dv,  dP = P * (dS - sum of P * dS),  dS = s (dq k' + q dk'),

with sums along each row. What goes with the network's own q, k, v and P is one matrix for all K vectors: the K tangents
of a head are rows or columns of one matrix, and are laid so once.
"""

from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F  # noqa: N812

from sampla.features._linear import linear
from sampla.features._stacking import Stacking, require_constant

_MULTI_HEAD = signature(F.multi_head_attention_forward)
_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")


def multi_head(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """As torch.nn.functional.multi_head_attention_forward; tokens among themselves, without masks, as here."""
    given = _MULTI_HEAD.bind(*args, **kwargs)
    given.apply_defaults()
    a = given.arguments
    odd = ("key_padding_mask", "attn_mask", "bias_k", "bias_v", "static_k", "static_v", "add_zero_attn", "need_weights")
    own = a["query"] is a["key"] is a["value"] and a["query"].ndim == 3 and not a["use_separate_proj_weight"]
    random = a["training"] and a["dropout_p"] > 0
    if not own or random or any(a[name] is not None and a[name] is not False for name in odd):
        result: tuple[Tensor, Tensor | None] = F.multi_head_attention_forward(*args, **kwargs)
        return result
    tokens = a["query"].transpose(0, 1)
    three = linear(tokens, a["in_proj_weight"], a["in_proj_bias"]).unflatten(-1, (3, a["num_heads"], -1))
    got = attended(three.permute(2, 0, 3, 1, 4), None, three.shape[-1] ** -0.5)
    return linear(got.transpose(1, 2).flatten(2), a["out_proj_weight"], a["out_proj_bias"]).transpose(0, 1), None


def scaled_dot_product(*args: Any, **kwargs: Any) -> Tensor:
    """As torch.nn.functional.scaled_dot_product_attention; as here where queries, keys and values are of one shape."""
    given = dict(zip(_ARGUMENTS, args, strict=False)) | kwargs
    q, k, v = (given[name] for name in _ARGUMENTS[:3])
    mask, causal, scale = (given.get(name) for name in ("attn_mask", "is_causal", "scale"))
    if (
        q.ndim != 4
        or not q.shape == k.shape == v.shape
        or given.get("dropout_p")
        or (mask is not None and mask.dtype != torch.bool)
    ):
        result: Tensor = F.scaled_dot_product_attention(*args, **kwargs)
        return result
    if causal:
        mask = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).tril()
    return attended(torch.stack([q, k, v]), mask, q.shape[-1] ** -0.5 if scale is None else scale)


def attended(three: Tensor, allowed: Tensor | None, scale: float) -> Tensor:
    """What each token gets, (n, h, L, d), of the (3, n, h, L, d) queries, keys and values.

    Args:
        three: all of them.
        allowed: which (..., L, L) pairs of token and key count; None: all.
        scale: s.
    """
    result: Tensor = _Attended.apply(three, allowed, scale)[0]
    return result


class _Attended(Function):
    @staticmethod
    def forward(three: Tensor, allowed: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
        q, k, v = three
        scores = (q @ k.mT).mul_(scale)
        if allowed is None:
            weights = scores.softmax(-1)
        else:  # a token that may look nowhere gets nothing
            weights = scores.masked_fill_(~allowed, -torch.inf).softmax(-1).masked_fill(~allowed, 0.0)
        return weights @ v, weights

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        three, _, ctx.scale = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(three, output[1])
        ctx.save_for_forward(three, output[1])

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[tuple[Tensor, Tensor], tuple[None, None]]:  # noqa: ARG004
        require_constant(in_dims)
        result: tuple[Tensor, Tensor] = _Attended.apply(*args)
        return result, (None, None)

    @staticmethod
    def jvp(ctx: Any, dthree: Tensor | None, *_: Any) -> Any:
        return (None if dthree is None else _Push.apply(dthree, *ctx.saved_tensors, ctx.scale)), None

    @staticmethod
    def backward(ctx: Any, u: Tensor | None, _: Any) -> Any:
        return (None if u is None else _Pull.apply(u, *ctx.saved_tensors, ctx.scale)), None, None


class _Push(Stacking):
    @staticmethod
    def stacked(*args: Any) -> Tensor:
        result: Tensor = _PushAll.apply(*args)
        return result


class _PushAll(Function):
    """(K, 3, n, h, L, d) to (K, n, h, L, d), with the transpose as its derivative."""

    @staticmethod
    def forward(dthree: Tensor, three: Tensor, weights: Tensor, scale: float) -> Tensor:
        return _pushed(dthree, three, weights, scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        _, three, weights, ctx.scale = inputs
        ctx.save_for_backward(three, weights)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> Any:
        three, weights = ctx.saved_tensors
        return _pulled(u, three, weights, ctx.scale), None, None, None


class _Pull(Stacking):
    @staticmethod
    def stacked(*args: Any) -> Tensor:
        return _pulled(*args)


def _pushed(dthree: Tensor, three: Tensor, weights: Tensor, scale: float) -> Tensor:
    count, _, n, heads, length, width = dthree.shape
    (q, k, v), p = (each.reshape(-1, length, width) for each in three), weights.flatten(0, 1)
    dq, dk, dv = dthree.unbind(1)
    scores = torch.bmm(_rows(dq), (scale * k).mT).view(-1, count, length, length)
    scores += torch.bmm(scale * q, _rows(dk).mT).view(-1, length, count, length).transpose(1, 2)
    by_weights = torch.bmm(_moved(scores, p).flatten(1, 2), v).view(n, heads, count, length, width)
    by_values = torch.bmm(p, _columns(dv)).view(n, heads, length, count, width)
    result = dthree.new_empty(count, n, length, heads, width).transpose(2, 3)
    return torch.add(by_weights.movedim(2, 0), by_values.movedim(3, 0), out=result)


def _pulled(u: Tensor, three: Tensor, weights: Tensor, scale: float) -> Tensor:
    count, n, heads, length, width = u.shape
    (q, k, v), p = (each.reshape(-1, length, width) for each in three), weights.flatten(0, 1)
    result = u.new_empty(count, n, length, 3, heads, width).permute(0, 3, 1, 4, 2, 5)
    by_query, by_key, by_value = result.unbind(1)
    scores = _moved(torch.bmm(_rows(u), v.mT).view(-1, count, length, length), p)
    by_query.copy_(torch.bmm(scores.flatten(1, 2), scale * k).view(n, heads, count, length, width).movedim(2, 0))
    turned = scores.mT.reshape(-1, count * length, length)
    by_key.copy_(torch.bmm(turned, scale * q).view(n, heads, count, length, width).movedim(2, 0))
    by_value.copy_(torch.bmm(p.mT, _columns(u)).view(n, heads, length, count, width).movedim(3, 0))
    return result


def _rows(tangents: Tensor) -> Tensor:
    """(K, n, h, L, d) to (n h, K L, d)."""
    return tangents.movedim(0, 2).reshape(-1, len(tangents) * tangents.shape[3], tangents.shape[4])


def _columns(tangents: Tensor) -> Tensor:
    """(K, n, h, L, d) to (n h, L, K d)."""
    return tangents.movedim(0, 3).reshape(-1, tangents.shape[3], len(tangents) * tangents.shape[4])


def _moved(scores: Tensor, p: Tensor) -> Tensor:
    """The derivative of softmax at P (b, L, L), a symmetric map, of (b, K, L, L), which are overwritten."""
    p = p[:, None]
    scores *= p
    return scores.sub_(p * scores.sum(-1, keepdim=True))
