"""The attention function that switches heads off: sdpa, with chosen queries or outputs at zero."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from sparsemm.errors import ModelError

NAME = "sparsemm_heads_off"
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Off:
    """Heads that are off.

    Attributes:
        heads: (L, Hq) bool.
        zero: "output": the head adds nothing to the residual stream. "query": its logits are all zero, so that it
            looks at everything alike.
    """

    heads: NDArray[np.bool_]
    zero: Literal["output", "query"]


_off: ContextVar[Off | None] = ContextVar("sparsemm_heads_off", default=None)


def attention_with_heads_off(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """sdpa attention of one layer, some of whose heads are off.

    Args:
        query: (B, Hq, T, D) post-RoPE.
        key, value: (B, Hkv, S, D).
        attention_mask: (B, 1, T, S) bool, or None without padding.
        scaling: factor of the logits.

    Returns:
        (B, T, Hq, D), None.

    Raises:
        ModelError: if the heads are not this model's.
    """
    off = _off.get()
    if off is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    if layer >= len(off.heads) or off.heads.shape[1] != query.shape[1]:
        raise ModelError(
            f"heads {off.heads.shape} for layer {layer} of {query.shape[1]} heads", where=type(module).__name__
        )
    mine = torch.from_numpy(off.heads[layer]).to(query.device)
    if off.zero == "query":
        query = query.masked_fill(mine[:, None, None], 0.0)
    output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    return (output.masked_fill(mine[:, None], 0.0) if off.zero == "output" else output), None


def heads_off(call: Callable[..., T], off: Off | None, model: Any, *arguments: Any) -> T:
    """`call(model, *arguments)` while these heads of the language model are off; what was set before is restored."""
    before = model.config.get_text_config()._attn_implementation
    token = _off.set(off)
    try:
        model.set_attn_implementation({"text_config": NAME})
        return call(model, *arguments)
    finally:
        model.set_attn_implementation({"text_config": before})
        _off.reset(token)


AttentionInterface.register(NAME, attention_with_heads_off)
AttentionMaskInterface.register(NAME, sdpa_mask)
