"""Counts the operations of a call, and measures how fast the device multiplies matrices: a lower limit of its time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from sparsemm.profiling import clock

SIDE = {"cpu": 1024, "cuda": 8192}  # rows of the square matrices, enough for the device's best rate
COMPARED = {"cpu": 256, "cuda": 8192}  # of those that dtypes are compared with: bf16 without instructions is very slow
TURNS = 5


def flops(call: Callable[[], Any]) -> int:
    """Counts the floating-point operations of a call's matrix products and convolutions; a product and a sum are 2.

    Attention is left out, because torch counts it on some devices only, and counts masked keys.
    """
    with FlopCounterMode(display=False) as counter:
        call()
    counts = counter.get_flop_counts().get("Global", {})
    return sum(int(count) for operator, count in counts.items() if "attention" not in str(operator))


def fastest_dtype(device: torch.device) -> str:
    """Returns float32 or bfloat16, whichever is multiplied faster: not every CPU has instructions for bfloat16."""
    side = COMPARED[device.type]
    return max(("float32", "bfloat16"), key=lambda name: matmul_rate(getattr(torch, name), device, side))


def matmul_rate(dtype: torch.dtype, device: torch.device, side: int | None = None) -> float:
    """Returns the floating-point operations per second of a product of two square matrices, the best of `TURNS`.

    `side` is their number of rows; None for `SIDE`.
    """
    side = side or SIDE[device.type]
    left, right = (torch.ones(side, side, dtype=dtype, device=device) for _ in range(2))
    left @ right
    best = min(clock.seconds(lambda: left @ right, device) for _ in range(TURNS))
    return 2 * side**3 / best
