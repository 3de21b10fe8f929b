"""What a cache kept, of what, layer by layer: the answer to "was anything compressed at all?"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers.cache_utils import CacheLayerMixin

from sparsemm.cache.layer import RaggedLayer


@dataclass(frozen=True)
class LayerSummary:
    """One layer of the model.

    Attributes:
        layer: its index in the model.
        compressed: whether it is one of the layers whose heads have budgets; others are transformers' own.
        kept: rows held now in each batch row, summed over KV heads; empty for other layers.
        seen: rows that were ever there: real tokens times KV heads; empty for other layers.
        kept_bytes: bytes of the keys and values held now, with their scales if storage is in 8 bits.
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
    """What a cache holds; `print(cache.summary())` shows a line per layer.

    Attributes:
        method: class of the policy.
        budget: mean slots per KV head.
        layers: one for each layer of the model, in order.
    """

    method: str
    budget: int
    layers: tuple[LayerSummary, ...]

    @property
    def kept(self) -> tuple[int, ...]:
        """Rows held now in each batch row, over all layers with budgets."""
        return tuple(sum(rows) for rows in zip(*(one.kept for one in self.layers if one.compressed), strict=True))

    @property
    def seen(self) -> tuple[int, ...]:
        """Rows that were ever there in each batch row, over all layers with budgets."""
        return tuple(sum(rows) for rows in zip(*(one.seen for one in self.layers if one.compressed), strict=True))

    @property
    def rows_compressed(self) -> tuple[bool, ...]:
        """Whether anything of each batch row was evicted: a row no longer than the budget is kept whole."""
        return tuple(kept < seen for kept, seen in zip(self.kept, self.seen, strict=True))

    @property
    def kept_bytes(self) -> int:
        """Bytes held now, over all layers."""
        return sum(one.kept_bytes for one in self.layers)

    @property
    def full_bytes(self) -> int:
        """Bytes that everything seen would take, over all layers."""
        return sum(one.full_bytes for one in self.layers)

    def __str__(self) -> str:
        count = sum(self.rows_compressed)
        lines = [
            f"{self.method}, budget {self.budget}: {sum(self.kept)} of {sum(self.seen)} rows, "
            f"{self.kept_bytes} of {self.full_bytes} bytes; {count} of {len(self.kept)} batch rows compressed"
        ]
        for one in self.layers:
            rows = f"{sum(one.kept)} of {sum(one.seen)} rows, " if one.compressed else "transformers' own, "
            sizes = f"{one.kept_bytes} of {one.full_bytes} bytes, {one.allocated_bytes} allocated"
            lines.append(f"layer {one.layer}: {rows}{sizes}")
        return "\n".join(lines)


def summarize(layers: list[Any]) -> Summary:
    """The summary of a cache's layers, after a prompt."""
    first = next(layer for layer in layers if isinstance(layer, RaggedLayer))
    return Summary(
        type(first.policy).__name__, first.policy.budget, tuple(_layer(i, layer) for i, layer in enumerate(layers))
    )


def other_bytes(layer: Any) -> int:
    """Bytes of a layer of transformers' own: its keys and values, or the states of its linear attention."""
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
