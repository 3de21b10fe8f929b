"""Language models by the sizes that matter for a cache, with random weights: nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder of the Llama family; what they mean is what transformers' configurations say."""

    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    head_dim: int = 128

    @property
    def group(self) -> int:
        """Query heads of a KV head."""
        return self.num_attention_heads // self.num_key_value_heads


SHAPES = {
    "small": Shape(2, 512, 1376, 8, 2, 1000, 64),
    "vicuna-7b": Shape(32, 4096, 11008, 32, 32, 32000),
    "mistral-7b": Shape(32, 4096, 14336, 32, 8, 32000),
    "qwen2-vl-7b": Shape(28, 3584, 18944, 28, 4, 152064),
}


def random_model(shape: Shape, dtype: torch.dtype, device: torch.device, longest: int) -> Any:
    """A causal language model with random weights, made where it will run.

    Args:
        longest: positions it must serve.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        num_hidden_layers=shape.num_hidden_layers,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        vocab_size=shape.vocab_size,
        head_dim=shape.head_dim,
        max_position_embeddings=longest,
    )
    config._attn_implementation = "sdpa"
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)
