"""How attention is written into a graph for GPUs: one operator, which reads tokens as they lie in memory."""

from collections.abc import Callable
from typing import Any

import torch
from onnxscript import opset23

__all__ = ["OPSET", "TRANSLATION"]

op: Any = opset23  # its stubs do not know that a list is a tensor

OPSET = 23
"""The first operator set that has `Attention`."""


def attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """torch's scaled_dot_product_attention of (B, heads, T, d), as `Attention` of (B, T, heads * d).

    Of four axes, as PyTorch's own translation leaves them, CUDA's kernel turns every input round and the
    result back. Here the exporter sees the turns, and takes them out against those that split the heads.
    """
    heads, width = query.shape[1], query.shape[3]

    def joined(x: Any) -> Any:
        return op.Reshape(op.Transpose(x, perm=[0, 2, 1, 3]), [0, 0, -1])

    attended, *_ = op.Attention(
        joined(query),
        joined(key),
        joined(value),
        attn_mask,
        is_causal=int(is_causal),
        scale=scale,
        q_num_heads=heads,
        kv_num_heads=key.shape[1],
    )
    split = op.Reshape(attended, [0, 0, heads, width])
    return op.Transpose(split, perm=[0, 2, 1, 3])


TRANSLATION: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.scaled_dot_product_attention.default: attention
}
"""What `torch.onnx.export` takes as `custom_translation_table`."""
