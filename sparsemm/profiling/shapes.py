"""Language models with the sizes of real ones and random weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sparsemm.errors import ModelError


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder of the Llama family, named as in transformers' configurations."""

    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    head_dim: int = 128

    @property
    def group(self) -> int:
        """Number of query heads per KV head."""
        return self.num_attention_heads // self.num_key_value_heads

    def parameters(self) -> int:
        """Returns the number of weights, embeddings included."""
        heads = 2 * (self.num_attention_heads + self.num_key_value_heads) * self.head_dim
        layer = self.hidden_size * (heads + 3 * self.intermediate_size + 2)
        return self.num_hidden_layers * layer + self.hidden_size * (2 * self.vocab_size + 1)

    def cache(self) -> int:
        """Returns how many numbers the keys and values of one token have."""
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim


SHAPES = {
    "small": Shape(2, 512, 1376, 8, 2, 1000, 64),
    "vicuna-7b": Shape(32, 4096, 11008, 32, 32, 32000),
    "mistral-7b": Shape(32, 4096, 14336, 32, 8, 32000),
    "qwen2-vl-7b": Shape(28, 3584, 18944, 28, 4, 152064),
}


def random_model(shape: Shape, dtype: torch.dtype, device: torch.device, longest: int) -> Any:
    """Creates a causal language model with random weights on a device.

    Args:
        shape: its sizes.
        dtype: dtype of the weights.
        device: the device.
        longest: largest number of positions.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**vars(shape), max_position_embeddings=longest)
    config._attn_implementation = "sdpa"
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def random_scores(shape: Shape) -> torch.Tensor:
    """Returns (layers, query heads) float64 scores, few of which are high; the same at every call."""
    sizes = shape.num_hidden_layers, shape.num_attention_heads
    return torch.rand(*sizes, generator=torch.Generator().manual_seed(4), dtype=torch.float64, device="cpu") ** 8


def check_room(
    name: str, length: int, batch_size: int, dtype: torch.dtype, device: torch.device, beside: int = 0
) -> None:
    """Checks that weights, full cache and a prompt's largest activations fit in the free memory of a device.

    On a CPU they may take half of the free memory, because other processes share it.

    Args:
        name: name of the shape.
        length: tokens of a prompt.
        batch_size: number of prompts.
        dtype: dtype of weights and cache.
        device: the device.
        beside: bytes that are needed besides.

    Raises:
        ModelError: if they do not fit; the message names both sizes.
    """
    shape = SHAPES[name]
    # Per token of the prompt: activations of the feed-forward layer, and hidden states.
    activations = 3 * shape.intermediate_size + 6 * shape.hidden_size
    numbers = shape.parameters() + batch_size * length * (shape.cache() + activations)
    needed, free = numbers * dtype.itemsize + beside, free_bytes(device)
    if free is not None and needed > free:
        available = f"{free / 2**30:.1f} GiB of {device.type} memory are available"
        what = f"{length} tokens need {needed / 2**30:.1f} GiB, {available}"
        hint = "use a larger device, a smaller shape or dtype, or fewer tokens: profile.lengths, --prompt"
        raise ModelError(what, where=f"shape {name}", hint=hint)


def free_bytes(device: torch.device) -> int | None:
    """Returns the bytes that may be allocated (see `check_room`), or None if the system does not tell."""
    if device.type == "cuda":
        # Memory that torch has reserved and not allocated is available, too.
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((512 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)  # half of KiB
