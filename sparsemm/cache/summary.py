"""Kept and seen rows and bytes of a cache, layer by layer: shows whether anything was compressed at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers.cache_utils import CacheLayerMixin

from sparsemm.cache.layer import RaggedLayer


@dataclass(frozen=True)
class LayerSummary:
    """One layer of the model.

    Attributes:
        layer: its number in the model.
        compressed: whether its heads have budgets; other layers are transformers' own.
        kept: rows stored now for each batch row, summed over KV heads; empty for other layers.
        seen: rows of a full cache, which are real tokens times KV heads; empty for other layers.
        kept_bytes: bytes of the keys and values stored now, with their scales in 8 bits.
        full_bytes: bytes that all of `seen` would take in the model's dtype.
        allocated_bytes: bytes of the buffers, slack included.
    """

    layer: int
    compressed: bool
    kept: tuple[int, ...]
    seen: tuple[int, ...]
    kept_bytes: int
    full_bytes: int
    allocated_bytes: int


@dataclass(frozen=True)
class Summary:
    """The summary of a cache; `print(cache.summary())` shows a line per layer.

    Attributes:
        method: class name of the policy.
        budget: mean slots per KV head.
        layers: one for each layer of the model, in order.
    """

    method: str
    budget: int
    layers: tuple[LayerSummary, ...]

    @property
    def kept(self) -> tuple[int, ...]:
        """Rows stored now for each batch row, over all layers with budgets."""
        return tuple(sum(rows) for rows in zip(*(layer.kept for layer in self.layers if layer.compressed), strict=True))

    @property
    def seen(self) -> tuple[int, ...]:
        """Rows of a full cache for each batch row, over all layers with budgets."""
        return tuple(sum(rows) for rows in zip(*(layer.seen for layer in self.layers if layer.compressed), strict=True))

    @property
    def rows_compressed(self) -> tuple[bool, ...]:
        """Whether rows of each batch row were evicted; one that is no longer than the budget keeps all of them."""
        return tuple(kept < seen for kept, seen in zip(self.kept, self.seen, strict=True))

    @property
    def kept_bytes(self) -> int:
        """Bytes stored now, over all layers."""
        return sum(layer.kept_bytes for layer in self.layers)

    @property
    def full_bytes(self) -> int:
        """Bytes of a full cache, over all layers."""
        return sum(layer.full_bytes for layer in self.layers)

    def __str__(self) -> str:
        count = sum(self.rows_compressed)
        lines = [
            f"{self.method}, budget {self.budget}: {sum(self.kept)} of {sum(self.seen)} rows, "
            f"{self.kept_bytes} of {self.full_bytes} bytes; {count} of {len(self.kept)} batch rows compressed"
        ]
        for layer in self.layers:
            rows = f"{sum(layer.kept)} of {sum(layer.seen)} rows, " if layer.compressed else "transformers' own, "
            sizes = f"{layer.kept_bytes} of {layer.full_bytes} bytes, {layer.allocated_bytes} allocated"
            lines.append(f"layer {layer.layer}: {rows}{sizes}")
        return "\n".join(lines)


def summarize(layers: list[Any]) -> Summary:
    """Summarizes the layers of a cache, after a prompt."""
    first = next(layer for layer in layers if isinstance(layer, RaggedLayer))
    return Summary(
        type(first.policy).__name__, first.policy.budget, tuple(_layer(i, layer) for i, layer in enumerate(layers))
    )


def other_bytes(layer: Any) -> int:
    """Returns the bytes of one of transformers' own layers: keys and values, or the states of linear attention."""
    tensors = [layer.keys, layer.values] if isinstance(layer, CacheLayerMixin) else []
    for states in ("conv_states", "recurrent_states"):
        tensors += getattr(layer, states, {}).values()
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def _layer(index: int, layer: Any) -> LayerSummary:
    if not isinstance(layer, RaggedLayer):
        size = other_bytes(layer)
        return LayerSummary(index, False, (), (), size, size, size)
    slab = layer.slab
    assert slab is not None
    kept = slab.lengths.view(slab.batch, -1).sum(-1).tolist()
    seen = [tokens * slab.num_kv_heads for tokens in layer.tokens_seen()]
    full_row = 2 * slab.keys.shape[-1] * slab.dtype.itemsize
    allocated = slab.allocated_bytes() + (0 if layer.eviction is None else layer.eviction.allocated_bytes())
    return LayerSummary(
        index, True, tuple(kept), tuple(seen), sum(kept) * slab.row_bytes(), sum(seen) * full_row, allocated
    )
