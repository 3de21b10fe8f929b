"""The setting of a benchmark, and the tensors that it works on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from sparsemm.profiling.shapes import Shape

BenchResult: TypeAlias = tuple[list[dict[str, Any]], dict[str, float]]  # rows and ratios


@dataclass(frozen=True)
class Setting:
    """The setting of a benchmark."""

    shape: Shape  # shape, dtype and device of the layer or the model
    dtype: torch.dtype
    device: torch.device
    repeats: int  # timed turns
    lengths: tuple[int, int, int]  # numbers of rows of a cache, called 1k, 8k and 32k in the names of ratios
    budget: int  # budget and observation window of a compressed cache
    window: int

    @property
    def prompts(self) -> tuple[int, ...]:
        """Prompt lengths for whole models; on a CPU the longest one would take minutes."""
        return self.lengths[1:] if self.device.type == "cuda" else self.lengths[1:2]

    def label(self, length: int) -> str:
        """Returns the name of a length in ratios: 1k, 8k or 32k."""
        return ("1k", "8k", "32k")[self.lengths.index(length)]

    def normal(self, *sizes: int, seed: int = 0) -> torch.Tensor:
        """Draws normally distributed numbers, the same at every call."""
        generator = torch.Generator(self.device).manual_seed(seed)
        return torch.randn(*sizes, generator=generator, dtype=torch.float32, device=self.device).to(self.dtype)

    def layer(self, batch: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Draws full keys and values (B, Hkv, S, D)."""
        sizes = batch, self.shape.num_key_value_heads, length, self.shape.head_dim
        return self.normal(*sizes), self.normal(*sizes, seed=1)

    def keep(self, batch: int, length: int, budget: int) -> torch.Tensor:
        """Draws (B, Hkv, S) bool, the kept positions: `budget` on average, up to 16 times as many in some heads."""
        heads = batch * self.shape.num_key_value_heads
        generator = torch.Generator().manual_seed(2)
        share = torch.exp2(4 * torch.rand(heads, generator=generator, dtype=torch.float32, device="cpu"))
        keep = torch.ones(heads, length, dtype=torch.bool, device="cpu")
        if budget < length:
            slots = (share / share.mean() * budget).long().clamp(1, length)
            order = torch.rand(heads, length, generator=generator, dtype=torch.float32, device="cpu").argsort(-1)
            keep = order.argsort(-1) < slots[:, None]
        return keep.view(batch, -1, length).to(self.device)


@dataclass(frozen=True)
class Bench:
    """One benchmark."""

    run: Callable[[Setting], BenchResult]  # function that measures and returns rows and ratios
    unused: tuple[str, ...] = ()  # options among shape, dtype and repeats that it does not have
    whole_model: bool = False  # whether it runs a whole model, for which the device must have enough memory
    # function from the setting to the bytes that it needs besides that model and one full cache
    beside: Callable[[Setting], int] = lambda setting: 0
    # function from the setting to the longest prompt of the model
    longest: Callable[[Setting], int] = lambda setting: max(setting.prompts)
