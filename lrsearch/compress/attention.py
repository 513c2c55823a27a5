"""torch's attention with its projections as layers, so that each of them can be compressed."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrsearch.compress.split import PARTS


class Attention(nn.MultiheadAttention):
    """``nn.MultiheadAttention`` that calls Linear layers ``q``, ``k``, ``v`` and ``out_proj``; :func:`open_attention` makes one.

    ``nn.TransformerEncoderLayer`` sees that it has no ``in_proj_bias``, and so calls it, and its own layers, one after another.
    """

    q: nn.Linear
    k: nn.Linear
    v: nn.Linear

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None, need_weights: bool = True,
        attn_mask: Tensor | None = None, average_attn_weights: bool = True, is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As ``nn.MultiheadAttention.forward``: ``(n, l, embed_dim)``, or ``(l, n, …)`` or ``(l, …)``, and the weights or None."""
        if is_causal and attn_mask is None:
            raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
        batch = query.dim() == 3
        query, key, value = (self._batch_first(x) for x in (query, key, value))
        n, length = query.shape[:2]
        q, k, v = (self._heads(layer(x)) for layer, x in ((self.q, query), (self.k, key), (self.v, value)))
        mask = self._mask(attn_mask, key_padding_mask, n, q)
        dropout, weights = (self.dropout if self.training else 0.0), None
        if need_weights:
            scores = (q * self.head_dim**-0.5) @ k.mT
            weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
            y = weights @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        y = self.out_proj(y.transpose(1, 2).reshape(n, length, self.embed_dim))
        if weights is not None:
            weights = weights.mean(1) if average_attn_weights else weights
        if not batch:
            return y[0], None if weights is None else weights[0]
        return y if self.batch_first else y.transpose(0, 1), weights

    def _batch_first(self, x: Tensor) -> Tensor:
        if x.dim() == 2:
            return x[None]
        return x if self.batch_first else x.transpose(0, 1)

    def _heads(self, x: Tensor) -> Tensor:
        """``(n, l, embed_dim)`` → ``(n, heads, l, head_dim)``."""
        return x.reshape(x.shape[0], x.shape[1], self.num_heads, self.head_dim).transpose(1, 2)

    def _mask(self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, n: int, like: Tensor) -> Tensor | None:
        """Both masks as one that is added to the scores, ``(n or 1, heads or 1, l or 1, s)``."""
        parts = []
        if attn_mask is not None:
            attn_mask = attn_mask if attn_mask.dim() == 2 else attn_mask.reshape(n, self.num_heads, *attn_mask.shape[1:])
            parts.append(_added(attn_mask, like))
        if key_padding_mask is not None:
            parts.append(_added(key_padding_mask.reshape(n, 1, 1, -1), like))
        return sum(parts[1:], parts[0]) if parts else None


def _added(mask: Tensor, like: Tensor) -> Tensor:
    """A mask that is True where nothing is to be attended to, as numbers to add."""
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill(mask, float("-inf"))


class Encoder(nn.TransformerEncoder):
    """``nn.TransformerEncoder`` over layers with :class:`Attention`.

    In eval mode torch computes batches whose padding is all at the end as nested tensors, which leaves zeros where the
    padding is; this does the same to dense ones.
    """

    def forward(
        self, src: Tensor, mask: Tensor | None = None, src_key_padding_mask: Tensor | None = None, is_causal: bool | None = None,
    ) -> Tensor:
        y = src
        for layer in self.layers:
            y = layer(y, src_mask=mask, is_causal=bool(is_causal), src_key_padding_mask=src_key_padding_mask)
        nested = self.use_nested_tensor and not self.training and mask is None and src.dim() == 3
        if nested and src_key_padding_mask is not None:
            padding = src_key_padding_mask != 0
            aligned = ~(padding[:, :-1] & ~padding[:, 1:]).any()
            y = y.masked_fill((padding & aligned)[..., None], 0)
        return y if self.norm is None else self.norm(y)


def opens(module: nn.Module) -> bool:
    """Whether :func:`open_attention` can change ``module``."""
    return type(module).forward is nn.MultiheadAttention.forward and not refusal(module)


def refusal(module: nn.Module) -> str:
    """Why the projections of an ``nn.MultiheadAttention`` cannot be made layers of their own; empty if they can."""
    if not isinstance(module, nn.MultiheadAttention) or type(module).forward is not nn.MultiheadAttention.forward:
        return f"{type(module).__name__} computes with its weights in a forward of its own"
    if module.bias_k is not None or module.add_zero_attn:
        return "its attention adds keys and values of its own (add_bias_kv or add_zero_attn)"
    if "in_proj_weight" not in module._parameters or any("weight" not in m._parameters for m in (module.out_proj,)):
        return "its projections are parametrised"
    return ""


def open_attention(module: Any) -> None:
    """Turn an ``nn.MultiheadAttention``, in place, into the :class:`Attention` that computes the same."""
    fused, bias = module.in_proj_weight, module.in_proj_bias
    weights = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight) if fused is None else fused.detach().chunk(3)
    biases = (None, None, None) if bias is None else bias.detach().chunk(3)
    trained = next(p for p in (fused, weights[0]) if p is not None).requires_grad
    for name, weight, own in zip(PARTS, weights, biases, strict=True):
        layer = nn.Linear(weight.shape[1], weight.shape[0], own is not None, device="meta")
        layer.weight = nn.Parameter(weight.detach().clone(), trained)
        if own is not None:
            layer.bias = nn.Parameter(own.clone(), bias.requires_grad)
        module.add_module(name, layer.train(module.training))
    for name in ("in_proj_weight", "in_proj_bias", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
        module.register_parameter(name, None)
    module._qkv_same_embed_dim = False
    module.__class__ = Attention


def open_encoder(module: Any) -> None:
    """Turn an ``nn.TransformerEncoder``, in place, into the :class:`Encoder` that computes the same."""
    module.__class__ = Encoder


def opens_encoder(module: nn.Module) -> bool:
    """Whether ``module`` is an ``nn.TransformerEncoder`` that is to become an :class:`Encoder`."""
    if type(module).forward is not nn.TransformerEncoder.forward or not isinstance(module, nn.TransformerEncoder):
        return False
    attention = [getattr(layer, "self_attn", None) for layer in module.layers]
    return all(isinstance(a, Attention) or (isinstance(a, nn.Module) and opens(a)) for a in attention)
