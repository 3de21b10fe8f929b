"""Counts the bytes of caches and weights, and the peak bytes of all tensors."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from torch.autograd.profiler import profile

from sparsemm.cache import CompressedCache


def tensor_bytes(*tensors: torch.Tensor) -> int:
    """Returns the bytes of the tensors' values."""
    return sum(t.numel() * t.element_size() for t in tensors)


def weight_bytes(model: Any) -> int:
    """Returns the bytes of weights that a decode step reads: all but input embeddings and the vision tower."""
    shared = model.get_output_embeddings().weight
    apart = ("embed_tokens", "visual", "vision_tower", "multi_modal_projector", "image_newline")
    named = [p for name, p in model.named_parameters() if p is shared or not any(part in name for part in apart)]
    return tensor_bytes(*named)


def cache_bytes(cache: Any) -> tuple[int, int]:
    """Returns (used, allocated) bytes of keys and values, of one of our caches or one of transformers."""
    if isinstance(cache, CompressedCache):
        return cache.kept_bytes(), cache.slab_bytes()
    total = sum(tensor_bytes(layer.keys, layer.values) for layer in cache.layers)
    return total, total


def peak_bytes(call: Callable[[], Any], device: torch.device) -> int:
    """Returns the peak bytes of tensors during `call()`, beyond what was allocated before.

    On a CUDA device the allocator counts them. On a CPU they follow from torch's record of allocations, which is exact,
    but does not include what other libraries allocate, and slows the call down.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler writes to stderr
    with profile(profile_memory=True) as record:
        call()
    assert record.kineto_results is not None
    events = [event for event in record.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate((event.nbytes() for event in events), initial=0))  # negative where memory is freed


def peak_bytes_of_model(model: Any, call: Callable[[], Any]) -> int:
    """Returns the peak bytes of tensors during `call()`, the model's weights included."""
    device = next(model.parameters()).device
    on_cuda = device.type == "cuda"
    before = torch.cuda.memory_allocated(device) if on_cuda else tensor_bytes(*model.parameters(), *model.buffers())
    return before + peak_bytes(call, device)
