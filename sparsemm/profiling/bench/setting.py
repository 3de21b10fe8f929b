"""What every bench runs with, and the tensors it is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from sparsemm.profiling.shapes import Shape

Found: TypeAlias = tuple[list[dict[str, Any]], dict[str, float]]  # rows and ratios of a bench


@dataclass(frozen=True)
class Setting:
    """What a bench runs with.

    Attributes:
        shape, dtype, device: of the layer or the model.
        repeats: timed turns.
        lengths: rows of a cache; ratios are named 1k, 8k and 32k after them.
        budget, window: of a compressed cache.
    """

    shape: Shape
    dtype: torch.dtype
    device: torch.device
    repeats: int
    lengths: tuple[int, int, int]
    budget: int
    window: int

    @property
    def prompts(self) -> tuple[int, ...]:
        """Lengths of whole models' prompts: on a CPU the longest one would take minutes."""
        return self.lengths[1:] if self.device.type == "cuda" else self.lengths[1:2]

    def label(self, length: int) -> str:
        """What ratios call a length: 1k, 8k or 32k."""
        return ("1k", "8k", "32k")[self.lengths.index(length)]

    def normal(self, *sizes: int, seed: int = 0) -> torch.Tensor:
        """Normally distributed numbers, the same at every call."""
        generator = torch.Generator(self.device).manual_seed(seed)
        return torch.randn(*sizes, generator=generator, dtype=torch.float32, device=self.device).to(self.dtype)

    def layer(self, batch: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Full keys and values (B, Hkv, S, D)."""
        sizes = batch, self.shape.num_key_value_heads, length, self.shape.head_dim
        return self.normal(*sizes), self.normal(*sizes, seed=1)

    def keep(self, batch: int, length: int, budget: int) -> torch.Tensor:
        """(B, Hkv, S) bool: random positions, `budget` on average, up to 16 times as many in some heads."""
        heads = batch * self.shape.num_key_value_heads
        generator = torch.Generator().manual_seed(2)
        share = torch.exp2(4 * torch.rand(heads, generator=generator, dtype=torch.float32, device="cpu"))
        slots = (share / share.mean() * budget).long().clamp(1, length) if budget < length else None
        keep = torch.ones(heads, length, dtype=torch.bool, device="cpu")
        if slots is not None:
            drawn = torch.rand(heads, length, generator=generator, dtype=torch.float32, device="cpu")
            keep = drawn.argsort(-1).argsort(-1) < slots[:, None]
        return keep.view(batch, -1, length).to(self.device)


@dataclass(frozen=True)
class Bench:
    """One bench.

    Attributes:
        run: measures, and returns rows and ratios.
        unused: options that it does not have, of shape, dtype and repeats.
        whole_model: whether it runs a whole model, which must have room on the device.
        beside: bytes on the device besides that model and one full cache, of a setting.
        longest: the longest prompt that the model sees, of a setting.
    """

    run: Callable[[Setting], Found]
    unused: tuple[str, ...] = ()
    whole_model: bool = False
    beside: Callable[[Setting], int] = lambda setting: 0
    longest: Callable[[Setting], int] = lambda setting: max(setting.prompts)
