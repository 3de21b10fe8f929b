"""Language models by the sizes that matter for a cache, with random weights: nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sparsemm.errors import ModelError


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

    def parameters(self) -> int:
        """Numbers in the weights, embeddings included."""
        heads = 2 * (self.num_attention_heads + self.num_key_value_heads) * self.head_dim
        layer = self.hidden_size * (heads + 3 * self.intermediate_size + 2)
        return self.num_hidden_layers * layer + self.hidden_size * (2 * self.vocab_size + 1)

    def cache(self) -> int:
        """Numbers in the keys and values of one token."""
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim


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


def random_scores(shape: Shape) -> torch.Tensor:
    """(layers, query heads) float64: scores of which few are high, the same at every call."""
    sizes = shape.num_hidden_layers, shape.num_attention_heads
    return torch.rand(*sizes, generator=torch.Generator().manual_seed(4), dtype=torch.float64, device="cpu") ** 8


def check_room(
    name: str, length: int, batch_size: int, dtype: torch.dtype, device: torch.device, beside: int = 0
) -> None:
    """Refuse a shape whose weights, full cache and a prompt's largest activations exceed the memory there is for it.

    That is what is free of a CUDA device; of a CPU's half of it, because whatever else runs there shares it.

    Args:
        beside: bytes of what else will be there.

    Raises:
        ModelError: with the memory wanted and found.
    """
    shape = SHAPES[name]
    # Per token of the prompt: what the feed-forward layer holds at once, and hidden states beside it.
    activations = 3 * shape.intermediate_size + 6 * shape.hidden_size
    numbers = shape.parameters() + batch_size * length * (shape.cache() + activations)
    wanted, found = numbers * dtype.itemsize + beside, free_bytes(device)
    if found is not None and wanted > found:
        there = f"{found / 2**30:.1f} GiB of {device.type} memory are there for it"
        what = f"{length} tokens want {wanted / 2**30:.1f} GiB, {there}"
        hint = "use a larger device, a smaller shape or dtype, or fewer tokens: profile.lengths, --prompt"
        raise ModelError(what, where=f"shape {name}", hint=hint)


def free_bytes(device: torch.device) -> int | None:
    """Bytes that may be allocated (see `check_room`), or None where the system does not say."""
    if device.type == "cuda":
        # What ran before may have left memory to torch, which hands it out again.
        left = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + left
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((512 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)  # half of KiB
