"""Mixed precision: matrix products in bf16, weights and everything that is summed up in fp32.

On a CPU with bf16 instructions the products are about four times faster so, but torch's flash attention is slower in
bf16 than in fp32, and its backward pass twice as slow; there attention stays in fp32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

PRECISIONS = ("fp32", "bf16")
EXACT = "sdpa_fp32"  # name among transformers' attention functions


def exact_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Transformers' sdpa attention of (B, H, S, D) tensors, computed in fp32 whatever autocast wants."""
    if attention_mask is not None and attention_mask.dtype != torch.bool:
        attention_mask = attention_mask.float()
    with torch.autocast(query.device.type, enabled=False):
        return sdpa_attention_forward(module, query.float(), key.float(), value.float(), attention_mask, **kwargs)


AttentionInterface.register(EXACT, exact_attention)
AttentionMaskInterface.register(EXACT, sdpa_mask)


def autocast(device: str, precision: str) -> torch.autocast:
    """The context in which losses are computed: bf16 products for "bf16", nothing for "fp32"."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16")
