"""The most memory that a function's tensors hold at one time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.profiler import profile


def peak_bytes(function: Callable[[], Any], device: torch.device) -> int:
    """Bytes that one call allocates at most, beyond what was allocated before it.

    On a CUDA device the allocator counts; on a CPU the profiler lists every allocation of torch, which is exact but
    does not see what libraries take for themselves.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(profile_memory=True, use_kineto=True) as seen:
        result = function()
    del result
    events = [event for event in seen.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda one: one.start_ns()):
        held += event.nbytes()  # negative where memory is given back
        peak = max(peak, held)
    return peak
