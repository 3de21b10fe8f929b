"""Which positions of one prompt every method keeps in every KV head, asked of the real cache."""

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
    """An empty cache for every method that evicts, at every budget.

    Methods that rate positions by their values are left out: `kept_positions` puts numbers in the values' place. So are
    those that need the image tokens, or all layers at once.

    Raises:
        BudgetError, CacheError, ScoreTableError: as `sparsemm.cache.compressed_cache`.
    """
    return {
        (method, budget): compressed_cache(
            model,
            make_policy_from(method, budget, table, {**settings, "pooling_kernel": pooling_kernel, "seed": seed}),
        )
        for method in methods
        if policy_class(method).compresses
        and not policy_class(method).measures
        and not selector_of(method).reads & {"image", "value"}
        for budget in budgets
    }


def kept_positions(layer: Any, query: torch.Tensor, key: torch.Tensor, scaling: float) -> torch.Tensor:
    """The positions of a prompt that one layer of an empty cache keeps; the layer is empty again afterwards.

    The layer compresses as it would during a prefill, with values that carry the number of their position.

    Args:
        layer: of a `CompressedCache`; one that is not compressed keeps everything.
        query: (1, Hq, S, D) post-RoPE, of the whole prompt.
        key: (1, Hkv, S, D) post-RoPE.
        scaling: factor of the logits.

    Returns:
        (Hkv, S) bool, on the CPU.
    """
    heads, length = key.shape[1:3]
    if not isinstance(layer, RaggedLayer):
        return torch.ones(heads, length, dtype=torch.bool, device="cpu")
    # fp32 counts to 2^24 without a gap; half precision would not.
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
