"""Attention over lanes: vLLM's own kernels where they serve the head size, else plain PyTorch.

A lane is the part of a block that belongs to one KV head; block b of head h is lane `b * Hkv + h`. Every request
becomes as many sequences as there are KV heads, each with one KV head, its query group as heads, and its lanes as
block table. A slot, `lane * block_size + i`, holds one row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F


@dataclass(frozen=True)
class Lanes:
    """A layer's cache as keys and values by lane.

    Attributes:
        keys, values: (lanes, block_size, D), views of the cache.
    """

    keys: torch.Tensor
    values: torch.Tensor

    @classmethod
    def of(cls, kv_cache: torch.Tensor) -> Lanes:
        """The lanes of a cache (blocks, Hkv, block_size, 2 * D) that is contiguous."""
        blocks, heads, size, width = kv_cache.shape
        keys, values = kv_cache.view(blocks * heads, 2, size, width // 2).unbind(1)
        return cls(keys, values)


@dataclass
class Sequences:
    """Sequences of one kind in a step: those before their prompts' end, or those after it.

    Attributes:
        query_lens: new tokens of each request; its sequences, one per KV head, follow one another.
        rows: (T * Hkv,) int64, which (token, KV head) of the batch the sequences hold, or None for all, in order.
        starts: (requests * Hkv + 1,) int32, where each sequence's queries start.
        slots: (layers or 1, T * Hkv) int64, where the new rows go.
        lengths: (layers or 1, requests * Hkv) int32, rows with the new ones.
        lanes: (layers or 1, requests * Hkv, J) int32.
        longest: rows of each request's longest sequence, which the host knows without asking the device.
        schedule: what the kernel prepared for each layer.
    """

    query_lens: list[int]
    rows: torch.Tensor | None
    starts: torch.Tensor
    slots: torch.Tensor
    lengths: torch.Tensor
    lanes: torch.Tensor
    longest: list[int]
    schedule: list[Any]


class TorchKernel:
    """Plain PyTorch; serves any head size."""

    def prepare(self, sequences: Sequences) -> list[Any]:
        """Nothing to prepare."""
        return []

    def write(self, lanes: Lanes, key: torch.Tensor, value: torch.Tensor, slots: torch.Tensor) -> None:
        """Puts rows (N, D) into slots (N,) int64."""
        size = lanes.keys.shape[1]
        lane, place = slots // size, slots % size
        lanes.keys[lane, place], lanes.values[lane, place] = key, value

    def read(self, lanes: Lanes, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The keys and values (N, D) of slots (N,) int64."""
        size = lanes.keys.shape[1]
        lane, place = slots // size, slots % size
        return lanes.keys[lane, place], lanes.values[lane, place]

    def attend(self, lanes: Lanes, query: torch.Tensor, sequences: Sequences, at: int, scale: float) -> torch.Tensor:
        """Causal attention of queries (T * Hkv, G, D), in the sequences' order, in that shape; `at` is the layer."""
        at = min(at, len(sequences.lengths) - 1)
        lengths, table, longest = sequences.lengths[at], sequences.lanes[at], sequences.longest
        if all(count == 1 for count in sequences.query_lens):
            return self._attend(lanes, query[:, None], lengths, max(longest), table, scale)[:, 0]
        heads = len(lengths) // len(sequences.query_lens)
        outputs, start = [], 0
        for i, count in enumerate(sequences.query_lens):
            part = slice(i * heads, (i + 1) * heads)
            some = query[start : start + count * heads].unflatten(0, (heads, count))
            outputs.append(self._attend(lanes, some, lengths[part], longest[i], table[part], scale).flatten(0, 1))
            start += count * heads
        return torch.cat(outputs)

    def _attend(
        self, lanes: Lanes, query: torch.Tensor, lengths: torch.Tensor, most: int, table: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """(N, T, G, D) of N sequences with T queries each and at most `most` rows."""
        table = table[:, : -(-most // lanes.keys.shape[1])]
        key, value = (rows[table].flatten(1, 2)[:, None] for rows in (lanes.keys, lanes.values))
        count, group = query.shape[1], query.shape[2]
        last = lengths[:, None] - count + torch.arange(count, dtype=lengths.dtype, device=lengths.device)
        seen = torch.arange(key.shape[2], dtype=lengths.dtype, device=lengths.device) <= last[..., None]
        key, value = (rows.expand(-1, group, -1, -1) for rows in (key, value))
        result = F.scaled_dot_product_attention(query.transpose(1, 2), key, value, attn_mask=seen[:, None], scale=scale)
        return result.transpose(1, 2)


class CpuKernel(TorchKernel):
    """vLLM's paged attention for CPUs, which reorders the keys of a block to fit the processor's instructions.

    Args:
        isa: vLLM's name of the instruction set.
        heads: queries that share a KV head.
        head_size: D.
        block_size: rows of a block.
        dtype: of the cache.
        split: whether long sequences are split over threads.
    """

    def __init__(self, isa: str, heads: int, head_size: int, block_size: int, dtype: torch.dtype, split: bool) -> None:
        self.isa, self.heads, self.head_size, self.dtype, self.split = isa, heads, head_size, dtype, split
        self.order = self._key_order(block_size)

    def prepare(self, sequences: Sequences) -> list[torch.Tensor]:
        """What the kernel wants to know of each layer's sequences beforehand."""
        from vllm import _custom_ops as ops

        return [
            ops.cpu_attn_get_scheduler_metadata(
                num_reqs=len(lengths),
                num_heads=self.heads,
                num_kv_heads=1,
                head_dim=self.head_size,
                seq_lens=lengths,
                dtype=self.dtype,
                query_start_loc=sequences.starts,
                causal=True,
                sliding_window_size=-1,
                isa=self.isa,
                enable_kv_split=self.split,
            )
            for lengths in sequences.lengths
        ]

    def write(self, lanes: Lanes, key: torch.Tensor, value: torch.Tensor, slots: torch.Tensor) -> None:
        """Puts rows (N, D) into slots (N,) int64."""
        from vllm import _custom_ops as ops

        keys, values = lanes.keys[:, None], lanes.values[:, None]
        ops.cpu_attn_reshape_and_cache(key[:, None], value[:, None], keys, values, slots, self.isa)

    def read(self, lanes: Lanes, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The keys and values (N, D) of slots (N,) int64."""
        count, size, dim = lanes.keys.shape
        lane, place = slots // size, slots % size
        used, position = lane.unique(return_inverse=True)
        keys = lanes.keys[used].reshape(len(used), size * dim)[:, self.order].view(len(used), size, dim)
        return keys[position, place], lanes.values[lane, place]

    def attend(self, lanes: Lanes, query: torch.Tensor, sequences: Sequences, at: int, scale: float) -> torch.Tensor:
        """Causal attention of queries (T * Hkv, G, D), in the sequences' order, in that shape; `at` is the layer."""
        from vllm import _custom_ops as ops

        at = min(at, len(sequences.lengths) - 1)
        output = torch.empty_like(query)
        ops.cpu_attention_with_kv_cache(
            query=query,
            key_cache=lanes.keys[:, None],
            value_cache=lanes.values[:, None],
            output=output,
            query_start_loc=sequences.starts,
            seq_lens=sequences.lengths[at],
            scale=scale,
            causal=True,
            alibi_slopes=None,
            sliding_window=-1,
            block_table=sequences.lanes[at],
            softcap=0.0,
            scheduler_metadata=sequences.schedule[at],
            s_aux=None,
        )
        return output

    def _key_order(self, size: int) -> torch.Tensor:
        """(block_size * D,) int64: where the kernel puts each number of a block's keys, found out by writing some.

        Numbers are written base 64, which every dtype holds exactly.
        """
        number = torch.arange(size * self.head_size, dtype=torch.int64, device="cpu").view(size, self.head_size)
        slots = torch.arange(size, dtype=torch.int64, device="cpu")
        place = torch.zeros(size * self.head_size, dtype=torch.int64, device="cpu")
        for digit in (1, 64, 64 * 64):
            cache = torch.zeros(1, 2, size, self.head_size, dtype=self.dtype, device="cpu")
            written = (number // digit % 64).to(self.dtype)
            self.write(Lanes(cache[:, 0], cache[:, 1]), written, written, slots)
            place += cache[0, 0].flatten().long() * digit
        return place.argsort()


class FlashKernel(TorchKernel):
    """FlashAttention as vLLM brings it for CUDA devices: to it, a lane is a block of a cache with one KV head.

    Args:
        version: of FlashAttention, 2 to 4.
        attention: vLLM's `flash_attn_varlen_func`.
        store: vLLM's `reshape_and_cache_flash`, which skips rows whose slot is -1.
        device: of the cache.
    """

    def __init__(
        self, version: int, attention: Callable[..., torch.Tensor], store: Callable[..., None], device: torch.device
    ) -> None:
        self.version, self.attention, self.store = version, attention, store
        self.unscaled = torch.ones((), dtype=torch.float32, device=device)

    def write(self, lanes: Lanes, key: torch.Tensor, value: torch.Tensor, slots: torch.Tensor) -> None:
        """Puts rows (N, D) into slots (N,) int64."""
        keys, values = lanes.keys[:, :, None], lanes.values[:, :, None]
        self.store(key[:, None], value[:, None], keys, values, slots, "auto", self.unscaled, self.unscaled)

    def attend(self, lanes: Lanes, query: torch.Tensor, sequences: Sequences, at: int, scale: float) -> torch.Tensor:
        """Causal attention of queries (T * Hkv, G, D), in the sequences' order, in that shape; `at` is the layer."""
        at = min(at, len(sequences.lengths) - 1)
        return self.attention(
            q=query,
            k=lanes.keys[:, :, None],
            v=lanes.values[:, :, None],
            out=torch.empty_like(query),
            cu_seqlens_q=sequences.starts,
            max_seqlen_q=max(sequences.query_lens),
            seqused_k=sequences.lengths[at],
            max_seqlen_k=max(sequences.longest),
            softmax_scale=scale,
            causal=True,
            block_table=sequences.lanes[at],
            fa_version=self.version,
        )
