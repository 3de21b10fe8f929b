"""Bytes that caches hold, and the most bytes that tensors ever held."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.profiler import profile

from sparsemm.cache import CompressedCache


def tensor_bytes(*tensors: torch.Tensor) -> int:
    """Bytes of tensors."""
    return sum(t.numel() * t.element_size() for t in tensors)


def weight_bytes(model: Any) -> int:
    """Bytes that a decode step reads of a model: all parameters but looked-up embeddings and the vision tower."""
    shared = model.get_output_embeddings().weight
    apart = ("embed_tokens", "visual", "vision_tower", "multi_modal_projector", "image_newline")
    named = [p for name, p in model.named_parameters() if p is shared or not any(part in name for part in apart)]
    return tensor_bytes(*named)


def cache_bytes(cache: Any) -> tuple[int, int]:
    """Bytes of the keys and values in use, and bytes allocated for them, of a cache of ours or of transformers'."""
    if isinstance(cache, CompressedCache):
        return cache.kept_bytes(), cache.slab_bytes()
    total = sum(tensor_bytes(layer.keys, layer.values) for layer in cache.layers)
    return total, total


def peak_bytes(call: Callable[[], Any], device: torch.device) -> int:
    """Returns the most bytes that `call()` held at once beyond what was allocated before it.

    On a CUDA device the allocator counts. On a CPU torch's own record of what it allocated and freed is added up, which
    is exact but does not see what libraries take for themselves, and slows the call down.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler talks on stderr
    with profile(profile_memory=True) as seen:
        call()
    assert seen.kineto_results is not None
    marks = [event for event in seen.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(marks, key=lambda event: event.start_ns()):
        held += event.nbytes()  # negative where memory is given back
        most = max(most, held)
    return most


def peak_bytes_of_model(model: Any, call: Callable[[], Any]) -> int:
    """Returns the most bytes that tensors held at once during `call()`, the model's weights included."""
    device = next(model.parameters()).device
    on_cuda = device.type == "cuda"
    before = torch.cuda.memory_allocated(device) if on_cuda else tensor_bytes(*model.parameters(), *model.buffers())
    return before + peak_bytes(call, device)
