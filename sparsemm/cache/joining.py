"""Joins caches of several methods into one, so that they decode as one batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sparsemm.cache.compressed import CompressedCache
from sparsemm.cache.layer import RaggedLayer
from sparsemm.errors import CacheError
from sparsemm.policies.full import Full


def join(caches: Sequence[CompressedCache]) -> CompressedCache:
    """Moves the batch rows of all caches into the first one, in their order, and returns it; the others become empty.

    Afterwards no method is left that could compress a later turn: the cache is for decoding alone. What each row holds
    stays the same, and so does the eviction of `hold_budget`.

    Args:
        caches: caches of one model and of prompts of one length, with the same `storage` and room. With `hold_budget`
            they also have the same selector and window, because these rate the tokens of an answer.

    Raises:
        CacheError: if the caches do not go together, or a layer with sliding-window or linear attention has a state of
            its own.
    """
    first, *others = caches
    if not others:
        return first
    if any(cache._others() for cache in caches):
        raise CacheError("caches with sliding-window or linear-attention layers cannot be joined")
    if any(_kind(cache) != _kind(first) for cache in others):
        raise CacheError("these caches differ in storage, room, length or eviction", hint="join those that are alike")
    for layers in zip(*(cache.ragged for cache in caches), strict=True):
        _join_layers(*layers)
        for layer in layers[1:]:
            layer.reset()  # layer by layer, so that not everything is in memory twice
    if first.rope is not None:
        deltas = [cache.rope.deltas for cache in caches if cache.rope is not None and cache.rope.deltas is not None]
        first.rope.deltas = torch.cat(deltas) if deltas else None
    for cache in others:
        cache.reset()
    return first


def _kind(cache: CompressedCache) -> object:
    """Returns what has to be equal in caches that are joined."""
    kinds = []
    for layer, slab in zip(cache.ragged, cache._slabs(), strict=True):
        rates = layer.eviction and (layer.eviction.policy.selector, layer.eviction.policy.window)
        kinds.append((layer.seen, slab.BUFFERS, slab.keys.dtype, slab.room, slab.num_kv_heads, rates))
    return kinds


def _join_layers(first: RaggedLayer, *others: RaggedLayer) -> None:
    """Moves the batch rows of other layers into the first one."""
    layers = (first, *others)
    slabs = [layer.slab for layer in layers if layer.slab is not None]
    slabs[0].add_rows(*slabs[1:])
    if first.eviction is not None:
        first.eviction.add_rows(*(layer.eviction for layer in others if layer.eviction is not None))
    first.unpadded = torch.cat([_unpadded(layer) for layer in layers])
    first.slots = torch.cat([layer.slots for layer in layers if layer.slots is not None])
    first.tokens = [count for layer in layers for count in layer.tokens]
    first.evicted = [count for layer in layers for count in layer.evicted]
    first.barrier = max(layer.barrier for layer in layers)
    first.policy = Full(shape=first.policy.shape)


def _unpadded(layer: RaggedLayer) -> torch.Tensor:
    """Returns which batch rows had no padding in later turns, (B, 1) bool."""
    if layer.unpadded is not None:
        return layer.unpadded
    assert layer.slots is not None
    return layer.slots.new_ones(len(layer.slots), 1, dtype=torch.bool)
