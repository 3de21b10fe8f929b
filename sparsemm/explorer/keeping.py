"""Finds which positions of a prompt every method keeps in every KV head, with the real cache."""

from __future__ import annotations

from typing import Any

import torch

from sparsemm.cache import CompressedCache, compressed_cache
from sparsemm.cache.layer import RaggedLayer
from sparsemm.policies import make_policy_from, policy_class, selector_of
from sparsemm.scores import ScoreTable

Choice = tuple[str, int]  # method, budget


def caches(
    model: Any,
    table: ScoreTable,
    methods: tuple[str, ...],
    budgets: list[int],
    settings: dict[str, Any],
    pooling_kernel: int,
    seed: int,
) -> dict[Choice, CompressedCache]:
    """Returns an empty cache for every method that evicts, at every budget.

    Methods that rate positions by their values are left out, because `kept_positions` replaces the values. So are those
    that need the image tokens, a replay, or all layers at once. It raises what `sparsemm.cache.compressed_cache` does.
    """
    return {
        (method, budget): compressed_cache(
            model, make_policy_from(method, budget, table, {**settings, "pooling_kernel": pooling_kernel, "seed": seed})
        )
        for method in methods
        if policy_class(method).compresses
        and not policy_class(method).measures
        and not selector_of(method).reads & {"image", "value", "replay"}
        for budget in budgets
    }


def kept_positions(layer: Any, query: torch.Tensor, key: torch.Tensor, scaling: float) -> torch.Tensor:
    """Returns the positions of a prompt that one layer of an empty cache keeps. The layer is empty again afterwards.

    The layer compresses as during a prefill, but each value is the number of its position.

    Args:
        layer: a layer of a `CompressedCache`; one that is not compressed keeps everything.
        query: (1, Hq, S, D) post-RoPE, for the whole prompt.
        key: (1, Hkv, S, D) post-RoPE.
        scaling: factor of the attention logits.

    Returns:
        (Hkv, S) bool, on the CPU.
    """
    heads, length = key.shape[1:3]
    if not isinstance(layer, RaggedLayer):
        return torch.ones(heads, length, dtype=torch.bool, device="cpu")
    # fp32 represents every integer up to 2^24; half precision does not.
    number = torch.arange(length, dtype=torch.float32, device=key.device)[:, None].expand(1, heads, -1, key.shape[-1])
    layer.seen = length
    layer.compress(query.float(), key.float(), number, None, scaling)
    slab = layer.slab
    assert slab is not None
    keep = torch.zeros(heads, length, dtype=torch.bool, device="cpu")
    for head, (start, count) in enumerate(zip(slab.starts.tolist(), slab.lengths.tolist(), strict=True)):
        keep[head, slab.values[start : start + count, 0].long().cpu()] = True
    layer.reset()
    return keep
