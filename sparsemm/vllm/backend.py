"""The attention backend for vLLM of layers whose heads keep different numbers of rows.

A step splits the new tokens of every request at the end of its prompt. Attention to the prompt is ordinary. At its end,
the observation window rates the other rows, and every head keeps its share. Later rows are appended to the kept ones.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from vllm import envs
from vllm.config import get_current_vllm_config
from vllm.distributed import get_tensor_model_parallel_rank
from vllm.model_executor.models.utils import extract_layer_index
from vllm.v1.attention.backend import AttentionMetadataBuilder, CommonAttentionMetadata, MultipleOf
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadataBuilder,
    _get_attn_isa,
)

from sparsemm.errors import EngineError
from sparsemm.vllm import methods
from sparsemm.vllm.kernels import CpuKernel, Lanes, Sequences, TorchKernel
from sparsemm.vllm.plan import Columns, HeadPages, policy_of
from sparsemm.vllm.settings import plan_of
from sparsemm.vllm.spec import HeadwiseSpec
from sparsemm.vllm.step import Ending, HeadwiseMetadata, Prompt, Windows

REMEMBERED = 64  # batches whose columns are kept


class HeadwiseBackend(CPUAttentionBackend):
    """vLLM's own backend for engines without compression, and for layers that are not compressed."""

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[int | MultipleOf]:
        """Any block size, for compressed layers."""
        if isinstance(kv_cache_spec, HeadwiseSpec):
            return [MultipleOf(1)]
        return CPUAttentionBackend.get_supported_kernel_block_sizes(kv_cache_spec)

    @staticmethod
    def get_impl_cls() -> type[CPUAttentionBackendImpl]:
        """Returns `HeadwiseImpl` for an engine that compresses, else vLLM's own class.

        Raises:
            EngineError: if the options ask for compression but the plug-in did not configure the engine.
        """
        return CPUAttentionBackendImpl if plan_of(get_current_vllm_config()) is None else HeadwiseImpl

    @staticmethod
    def get_builder_cls() -> type[CPUAttentionMetadataBuilder]:
        """Returns `HeadwiseBuilder`, which acts as vLLM's own builder for layers that are not compressed."""
        return HeadwiseBuilder


class HeadwiseBuilder(CPUAttentionMetadataBuilder):
    """Makes the metadata of a step for a group of layers, which is vLLM's own if they are not compressed.

    The worker sets `batch`, a function that returns the running requests' ids and prompt lengths, and `windows`.
    """

    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: torch.device) -> None:
        self.headwise = isinstance(kv_cache_spec, HeadwiseSpec)
        if not self.headwise:
            super().__init__(kv_cache_spec, layer_names, vllm_config, device)
            return
        AttentionMetadataBuilder.__init__(self, kv_cache_spec, layer_names, vllm_config, device)
        self.spec: HeadwiseSpec = kv_cache_spec
        self.plan, self.size, self.heads = self.spec.plan, self.spec.block_size, self.spec.num_kv_heads
        self.rank = get_tensor_model_parallel_rank()
        self.layers = [self.plan.layers.index(extract_layer_index(name)) for name in layer_names]
        self.at = {name: i for i, name in enumerate(layer_names)}
        self.every_row = methods.rates_every_row(self.plan.method)
        self.batch: Any = None
        self.windows = Windows()
        self.ended: dict[str, int] = {}  # running requests whose prompts are compressed, and their lengths
        self.laid_out: OrderedDict[Any, Any] = OrderedDict()
        group = vllm_config.model_config.get_num_attention_heads(vllm_config.parallel_config) // self.heads
        self.kernel = self._kernel(group, vllm_config)

    def _kernel(self, group: int, vllm_config: Any) -> TorchKernel:
        dim, dtype = self.spec.head_size, self.spec.dtype
        if dim not in CPUAttentionBackend.get_supported_head_sizes():
            return TorchKernel()
        isa = _get_attn_isa(dtype, self.size, dim, vllm_config.cache_config.cache_dtype)
        return CpuKernel(isa, group, dim, self.size, dtype, envs.VLLM_CPU_ATTN_SPLIT_KV)

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> Any:
        """The metadata of the step that vLLM describes.

        Raises:
            EngineError: if the worker did not say which requests these are, or a request goes on behind a prompt that
                was never compressed.
        """
        if not self.headwise:
            return super().build(common_prefix_len, common_attn_metadata, fast_build)
        if self.batch is None:
            raise EngineError("the attention backend runs without its worker", hint="leave worker_cls to the plug-in")
        common = common_attn_metadata
        ids, lengths = self.batch(common.num_reqs)
        starts = common.query_start_loc_cpu[: common.num_reqs + 1].numpy().astype(np.int64)
        new = np.diff(starts)
        seen = common.seq_lens[: common.num_reqs].cpu().numpy().astype(np.int64)
        prompts = lengths.astype(np.int64)
        done = seen - new
        first = np.clip(np.minimum(seen, prompts) - done, 0, None)  # new tokens of the prompt
        table = common.block_table_tensor
        before = np.flatnonzero(first > 0)
        after = np.flatnonzero(new > first)
        ends = done + first == prompts
        self._check(ids, prompts, before[ends[before]], before[~ends[before]], after)
        return HeadwiseMetadata(
            self.at,
            self._before(starts, first, done, table, before) if len(before) else None,
            self._after(starts + np.append(first, 0), new - first, done + first - prompts, prompts, table, after)
            if len(after)
            else None,
            [
                self._prompt(
                    ids[i], int(starts[i]), int(first[i]), int(done[i]), int(prompts[i]), table[i], bool(ends[i])
                )
                for i in before.tolist()
            ],
            self.windows,
        )

    def _check(
        self, ids: list[str], prompts: np.ndarray, ending: np.ndarray, unfinished: np.ndarray, after: np.ndarray
    ) -> None:
        """Keeps account of the requests whose prompts are compressed, which alone may have tokens behind them."""
        for i in unfinished.tolist():
            self.ended.pop(ids[i], None)
        for i in ending.tolist():
            self.ended[ids[i]] = int(prompts[i])
        for i in after.tolist():
            if self.ended.get(ids[i]) != prompts[i]:
                what = f"tokens come behind a prompt of {prompts[i]} tokens that was not compressed"
                hint = "please report it, with the options of the engine and the request"
                raise EngineError(what, where=f"request {ids[i]}", hint=hint)

    def forget(self, requests: Iterable[str]) -> None:
        """Forgets requests that are finished or preempted."""
        for request in requests:
            self.ended.pop(request, None)

    def _before(
        self, starts: np.ndarray, counts: np.ndarray, done: np.ndarray, table: torch.Tensor, which: np.ndarray
    ) -> Sequences:
        """Prompts' tokens: a row's place follows from its position, and is the same in all layers."""
        token, request, offset = _expand(starts[which], counts[which])
        position = torch.from_numpy(done[which][request] + offset)
        blocks = table[torch.from_numpy(which)]
        block = blocks[torch.from_numpy(request), position // self.size].long()
        heads = torch.arange(self.heads, dtype=torch.int64, device=table.device)
        slots = (block[:, None] * self.heads + heads) * self.size + (position % self.size)[:, None]
        most = -(-int((done + counts)[which].max()) // self.size)
        lanes = blocks[:, None, :most] * self.heads + heads.int()[:, None]
        lengths = torch.from_numpy((done + counts)[which]).int()[:, None].expand(-1, self.heads)
        return self._sequences(counts[which], token, slots[None], lengths[None], lanes[None], len(starts) - 1)

    def _after(
        self,
        starts: np.ndarray,
        counts: np.ndarray,
        later: np.ndarray,
        prompts: np.ndarray,
        table: torch.Tensor,
        which: np.ndarray,
    ) -> Sequences:
        """Tokens behind prompts; `later` of them came before this step."""
        token, request, offset = _expand(starts[which], counts[which])
        rows, column, part = self._layout(tuple(prompts[which].tolist()), int((later + counts)[which].max()))
        blocks = table[torch.from_numpy(which)]
        layers, requests, heads, runs = column.shape
        flat = column.transpose(0, 1).reshape(requests, -1).clamp(max=blocks.shape[1] - 1)
        block = blocks.gather(1, flat).view(requests, layers, heads, runs).transpose(0, 1)
        lanes = block * self.heads + part
        new = torch.from_numpy(later[which][request] + offset)
        of_token = torch.from_numpy(request)
        place = rows[:, of_token] + new[:, None]  # (layers, T, H)
        lane = lanes[:, of_token].gather(3, (place // self.size)[..., None])[..., 0].long()
        lengths = rows.int() + torch.from_numpy((later + counts)[which]).int()[:, None]
        slots = lane * self.size + place % self.size
        return self._sequences(counts[which], token, slots, lengths, lanes, len(starts) - 1)

    def _layout(self, prompts: tuple[int, ...], later: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rows (layers, requests, Hkv), and columns and parts of blocks (layers, requests, Hkv, J) of a batch."""
        key = (prompts, later // (4 * self.size))
        if key in self.laid_out:
            self.laid_out.move_to_end(key)
            return self.laid_out[key]
        later = (key[1] + 1) * 4 * self.size
        made = [self._pages(prompt) for prompt in prompts]
        runs = max(-(-(int(pages.rows.max()) + later) // self.size) for pages, _ in made)
        numbers = [(pages.numbers(runs), columns) for pages, columns in made]
        rows = np.stack([pages.rows for pages, _ in made], axis=1)
        column = np.stack([columns.column(number // self.heads) for number, columns in numbers], axis=1)
        part = np.stack([number % self.heads for number, _ in numbers], axis=1)
        result = torch.from_numpy(rows), torch.from_numpy(column), torch.from_numpy(part).int()
        self.laid_out[key] = result
        if len(self.laid_out) > REMEMBERED:
            self.laid_out.popitem(last=False)
        return result

    def _pages(self, prompt: int) -> tuple[HeadPages, Columns]:
        rows = self.plan.rank_rows(prompt, self.rank)[self.layers]
        return HeadPages.of(rows, self.size), Columns.of(self.plan, self.spec.bucket, self.size, prompt)

    def _prompt(
        self, request: str, start: int, count: int, done: int, prompt: int, table: torch.Tensor, ends: bool
    ) -> Prompt:
        """A prompt with `count` tokens in this step, from its block table (C,) int32."""
        rated = self.every_row and prompt >= self.plan.budget
        source = None
        if rated or ends:
            position = torch.arange(done + count, dtype=torch.int64, device=table.device)
            heads = torch.arange(self.heads, dtype=torch.int64, device=table.device)
            lane = table[position // self.size].long() * self.heads + heads[:, None]
            source = lane * self.size + position % self.size
        ending = self._ending(prompt, table) if ends else None
        return Prompt(request, start, start + count, done, source, rated, ending)

    def _ending(self, prompt: int, table: torch.Tensor) -> Ending:
        """Where those rows of a prompt (its block table (C,) int32) go that are kept."""
        pages, columns = self._pages(prompt)
        runs = int(pages.first.max())
        number = pages.numbers(runs)
        column = torch.from_numpy(columns.column(number // self.heads)).clamp(max=len(table) - 1)
        lanes = table[column].long() * self.heads + torch.from_numpy(number % self.heads)
        slots = (
            lanes[..., None] * self.size + torch.arange(self.size, dtype=torch.int64, device=table.device)
        ).flatten(2)
        inside = (
            torch.arange(runs * self.size, dtype=torch.int64, device=table.device)
            < torch.from_numpy(pages.rows)[..., None]
        )
        target = [one[kept] for one, kept in zip(slots, inside, strict=True)]
        return Ending(prompt, torch.from_numpy(pages.rows), target)

    def _sequences(
        self,
        counts: np.ndarray,
        token: np.ndarray,
        slots: torch.Tensor,
        lengths: torch.Tensor,
        lanes: torch.Tensor,
        requests: int,
    ) -> Sequences:
        """Sequences of (layers, T, Hkv) slots, (layers, requests, Hkv) lengths and (..., J) lanes."""
        starts = np.concatenate([[0], np.repeat(counts, self.heads).cumsum()])
        head = np.arange(self.heads, dtype=np.int64)
        if (counts == 1).all():
            order, rows = None, token[:, None] * self.heads + head
        else:
            # Token by token in the batch, head by head in the sequences.
            start = np.repeat(counts.cumsum() - counts, counts)
            count = np.repeat(counts, counts)
            offset = np.arange(len(token), dtype=np.int64) - start
            to = start[:, None] * self.heads + head * count[:, None] + offset[:, None]
            order = np.empty(to.size, dtype=np.int64)
            order[to.ravel()] = np.arange(to.size, dtype=np.int64)
            rows = (token[:, None] * self.heads + head).ravel()[order]
        flat = slots.reshape(len(slots), -1)
        sequences = Sequences(
            counts.tolist(),
            None if order is None and len(counts) == requests else torch.from_numpy(rows.ravel()),
            torch.from_numpy(starts).int(),
            flat if order is None else flat[:, torch.from_numpy(order)],
            lengths.reshape(len(lengths), -1).contiguous(),
            lanes.flatten(1, 2).contiguous(),
            [],
        )
        sequences.schedule = self.kernel.prepare(sequences)
        return sequences


def _expand(starts: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of `counts` tokens from `starts`: its place in the batch, its request's, and its number in that."""
    request = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
    offset = np.arange(len(request), dtype=np.int64) - np.repeat(counts.cumsum() - counts, counts)
    return starts[request] + offset, request, offset


class HeadwiseImpl(CPUAttentionBackendImpl):
    """Attention of one layer; a sliding-window layer is vLLM's own.

    Raises:
        EngineError: if the layer has sinks, ALiBi, a soft cap, or shares another layer's cache.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        refused = {
            "attention sinks": self.sinks is not None,
            "ALiBi": self.alibi_slopes is not None,
            "a soft cap of its logits": bool(self.logits_soft_cap),
            "another layer's cache": self.kv_sharing_target_layer_name is not None,
        }
        self.headwise = self.sliding_window == -1 and self.attn_type == "decoder"
        for what, found in refused.items():
            if found and self.headwise:
                hint = "use transformers with sparsemm.compressed_cache"
                raise EngineError(f"a layer with {what} is not served with a compressed cache", hint=hint)
        if self.headwise:
            plan = plan_of(get_current_vllm_config())
            assert plan is not None
            self.plan, self.policy = plan, policy_of(plan)
            self.kernel: TorchKernel | None = None  # the builder's

    def do_kv_cache_update(self, layer: Any, key: Any, value: Any, kv_cache: Any, slot_mapping: Any) -> None:
        """Nothing for a compressed layer, whose rows are written with its attention."""
        if not self.headwise:
            super().do_kv_cache_update(layer, key, value, kv_cache, slot_mapping)

    def forward(
        self,
        layer: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: Any,
        output: torch.Tensor,
        *args: Any,
        **options: Any,
    ) -> torch.Tensor:
        """Attention of (T, Hq, D) queries into `output`; keys and values (T, Hkv, D) go into the cache.

        Raises:
            EngineError: if a prompt could not be compressed.
        """
        if not isinstance(attn_metadata, HeadwiseMetadata):
            if self.headwise and attn_metadata is not None:  # None while vLLM measures the model
                what = f"a layer that should be compressed has metadata of {type(attn_metadata).__name__}"
                raise EngineError(what, where=layer.layer_name)
            return super().forward(layer, query, key, value, kv_cache, attn_metadata, output, *args, **options)
        step, at, lanes = attn_metadata, attn_metadata.at[layer.layer_name], Lanes.of(kv_cache)
        key, value = (x.reshape(-1, x.shape[-1]) for x in (key, value))
        grouped = query.reshape(len(key), -1, self.head_size)
        for sequences in (step.before, step.after):
            if sequences is not None:
                self._attend(lanes, grouped, key, value, sequences, at, output.view(grouped.shape))
            if sequences is step.before:
                for prompt in step.prompts:
                    self._end(step, prompt, layer.layer_name, query, lanes)
        return output

    def _attend(
        self,
        lanes: Lanes,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        sequences: Sequences,
        at: int,
        output: torch.Tensor,
    ) -> None:
        """Writes new rows and computes attention to all rows; tensors are by (token, KV head)."""
        kernel, slots = self.kernel, sequences.slots[min(at, len(sequences.slots) - 1)]
        assert kernel is not None
        if sequences.rows is None:
            count = len(slots)
            kernel.write(lanes, key[:count], value[:count], slots)
            output[:count] = kernel.attend(lanes, query[:count].contiguous(), sequences, at, self.scale)
            return
        kernel.write(lanes, key[sequences.rows], value[sequences.rows], slots)
        output[sequences.rows] = kernel.attend(lanes, query[sequences.rows], sequences, at, self.scale)

    def _end(self, step: HeadwiseMetadata, prompt: Prompt, layer: str, query: torch.Tensor, lanes: Lanes) -> None:
        """Stores the newest queries of an unfinished prompt, or compresses a prompt that ends in this step."""
        window, kernel = self.plan.window, self.kernel
        assert kernel is not None
        queries = query[prompt.start : prompt.stop]
        newest = step.windows.extend(prompt, layer, queries, window)
        if prompt.source is None:
            return
        key, value = (x.unflatten(0, prompt.source.shape) for x in kernel.read(lanes, prompt.source.flatten()))
        key, worth, ending = key.contiguous(), None, prompt.ends
        if prompt.rated:
            worth = methods.rate(self.policy, queries.transpose(0, 1), key, self.scale)
            worth = step.windows.raise_worth(prompt, layer, worth)
        if ending is None:
            return
        if len(newest) != min(window, ending.length):
            what = f"{len(newest)} queries of a prompt of {ending.length} tokens were there to rate it, not {window}"
            raise EngineError(what, where=f"request {prompt.request}, {layer}")
        at = step.at[layer]
        newest, rows = newest.transpose(0, 1).contiguous(), ending.rows[at]
        keep = methods.kept_positions(self.policy, newest, key, rows, self.scale, worth)
        kept = keep.sum(-1)
        if not torch.equal(kept, rows):
            what = f"heads kept {kept.tolist()} rows, planned are {rows.tolist()}"
            raise EngineError(what, where=f"request {prompt.request}, {layer}")
        kernel.write(lanes, key[keep], value[keep], ending.target[at])
