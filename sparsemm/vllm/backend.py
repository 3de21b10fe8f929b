"""The attention for vLLM of layers whose heads keep different numbers of rows; cpu.py and cuda.py make backends of it.

A step splits the new tokens of every request at the end of its prompt. Attention to the prompt is ordinary. At its end,
the observation window rates the other rows, and every head keeps its share. Later rows are appended to the kept ones.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from vllm.config import get_current_vllm_config
from vllm.distributed import get_tensor_model_parallel_rank
from vllm.model_executor.models.utils import extract_layer_index
from vllm.v1.attention.backend import AttentionImpl, AttentionMetadataBuilder, CommonAttentionMetadata

from sparsemm.errors import EngineError
from sparsemm.vllm import methods
from sparsemm.vllm.kernels import Lanes, Sequences, TorchKernel
from sparsemm.vllm.plan import Columns, HeadPages, policy_of
from sparsemm.vllm.settings import plan_of
from sparsemm.vllm.spec import HeadwiseSpec
from sparsemm.vllm.step import Ending, HeadwiseMetadata, Prompt, Windows

REMEMBERED = 64  # batches whose columns are kept


class HeadwiseBuilder(AttentionMetadataBuilder):
    """Makes the metadata of a step for a group of layers.

    The worker sets `batch`, a function that returns the running requests' ids and prompt lengths, and `windows`.
    A step with CUDA tensors never waits for the device, except where a prompt is compressed.
    """

    headwise = True  # else a subclass acts as vLLM's own builder for layers that are not compressed

    def __init__(self, kv_cache_spec: HeadwiseSpec, layer_names: list[str], vllm_config: Any, device: Any) -> None:
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
        self.kernel = self.choose_kernel()

    def choose_kernel(self) -> TorchKernel:
        """The fastest kernel that serves these layers."""
        return TorchKernel()

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> Any:
        """The metadata of the step that vLLM describes.

        Raises:
            EngineError: if the worker did not say which requests these are, or a request goes on behind a prompt that
                was never compressed.
        """
        if self.batch is None:
            raise EngineError("the attention backend runs without its worker", hint="leave worker_cls to the plug-in")
        return self.describe(common_attn_metadata, *self.batch(common_attn_metadata.num_reqs))

    def describe(self, common: CommonAttentionMetadata, ids: list[str], lengths: NDArray[Any]) -> HeadwiseMetadata:
        """The metadata of a step with tokens of these requests, whose prompts have these lengths (N,) int."""
        starts = common.query_start_loc_cpu[: len(ids) + 1].numpy().astype(np.int64)
        new = np.diff(starts)
        # Exact wherever this plug-in runs: only drafts that are scheduled ahead make it an upper bound.
        seen = common.seq_lens_cpu_upper_bound[: len(ids)].numpy().astype(np.int64)
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

    def _put(self, numbers: NDArray[Any]) -> torch.Tensor:
        """Numbers of the host on the device, without waiting for it."""
        tensor = torch.from_numpy(numbers)
        return tensor if self.device.type == "cpu" else tensor.pin_memory().to(self.device, non_blocking=True)

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
        position, length = done[which][request] + offset, (done + counts)[which]
        blocks = table[self._put(which)]
        block = blocks[self._put(request), self._put(position // self.size)].long()
        heads = torch.arange(self.heads, dtype=torch.int64, device=table.device)
        slots = (block[:, None] * self.heads + heads) * self.size + self._put(position % self.size)[:, None]
        lanes = blocks[:, None, : -(-int(length.max()) // self.size)] * self.heads + heads.int()[:, None]
        lengths = self._put(length).int()[:, None].expand(-1, self.heads)
        return self._sequences(counts[which], token, slots[None], lengths[None], lanes[None], length)

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
        ends = (later + counts)[which]
        (rows, column, part), most = self._layout(tuple(prompts[which].tolist()), int(ends.max()))
        blocks = table[self._put(which)]
        layers, requests, heads, runs = column.shape
        flat = column.transpose(0, 1).reshape(requests, -1).clamp(max=blocks.shape[1] - 1)
        block = blocks.gather(1, flat).view(requests, layers, heads, runs).transpose(0, 1)
        lanes = block * self.heads + part
        of_token = self._put(request)
        place = rows[:, of_token] + self._put(later[which][request] + offset)[:, None]  # (layers, T, H)
        lane = lanes[:, of_token].gather(3, (place // self.size)[..., None])[..., 0].long()
        lengths = (rows + self._put(ends)[:, None]).int()
        slots = lane * self.size + place % self.size
        return self._sequences(counts[which], token, slots, lengths, lanes, most + ends)

    def _layout(self, prompts: tuple[int, ...], later: int) -> tuple[tuple[torch.Tensor, ...], NDArray[np.int64]]:
        """The layout of a batch.

        Returns:
            Rows (layers, requests, Hkv), and columns and parts of blocks (layers, requests, Hkv, J); and the rows of
            each request's largest head, which the host knows.
        """
        key = (prompts, later // (4 * self.size))
        if key in self.laid_out:
            self.laid_out.move_to_end(key)
            return self.laid_out[key]
        later = (key[1] + 1) * 4 * self.size
        layouts = [self._pages(prompt) for prompt in prompts]
        runs = max(-(-(int(pages.rows.max()) + later) // self.size) for pages, _ in layouts)
        numbers = [(pages.numbers(runs), columns) for pages, columns in layouts]
        rows = np.stack([pages.rows for pages, _ in layouts], axis=1)
        column = np.stack([columns.column(number // self.heads) for number, columns in numbers], axis=1)
        part = np.stack([number % self.heads for number, _ in numbers], axis=1)
        result = (self._put(rows), self._put(column), self._put(part).int()), rows.max(axis=(0, 2))
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
        column = self._put(columns.column(number // self.heads)).clamp(max=len(table) - 1)
        lanes = table[column].long() * self.heads + self._put(number % self.heads)
        run = torch.arange(self.size, dtype=torch.int64, device=table.device)
        slots = (lanes[..., None] * self.size + run).flatten(2)
        rows = self._put(pages.rows)
        inside = torch.arange(runs * self.size, dtype=torch.int64, device=table.device) < rows[..., None]
        target = [one[kept] for one, kept in zip(slots, inside, strict=True)]
        return Ending(prompt, rows, target)

    def _sequences(
        self,
        counts: np.ndarray,
        token: np.ndarray,
        slots: torch.Tensor,
        lengths: torch.Tensor,
        lanes: torch.Tensor,
        longest: np.ndarray,
    ) -> Sequences:
        """Sequences of (layers, T, Hkv) slots, (layers, requests, Hkv) lengths and (..., J) lanes.

        `rows` is None if these are the first tokens of the batch, one of each request.
        """
        starts = np.concatenate([[0], np.repeat(counts, self.heads).cumsum()])
        head = np.arange(self.heads, dtype=np.int64)
        # Not so where a prompt's tokens come before one of them, as in a request that is resumed after a preemption.
        first = (counts == 1).all() and len(token) == token[-1] + 1
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
            None if first else self._put(rows.ravel()),
            self._put(starts).int(),
            flat if order is None else flat[:, self._put(order)],
            lengths.reshape(len(lengths), -1).contiguous(),
            lanes.flatten(1, 2).contiguous(),
            longest.tolist(),
            [],
        )
        sequences.schedule = self.kernel.prepare(sequences)
        return sequences


def _expand(starts: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of `counts` tokens from `starts`: its place in the batch, its request's, and its number in that."""
    request = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
    offset = np.arange(len(request), dtype=np.int64) - np.repeat(counts.cumsum() - counts, counts)
    return starts[request] + offset, request, offset


class HeadwiseImpl(AttentionImpl):
    """Attention of one layer; subclasses call `adopt` once vLLM's attributes are set."""

    def adopt(self, sinks: Any, alibi_slopes: Any, logits_soft_cap: Any, shared_layer: Any) -> None:
        """Takes over a layer that is compressed.

        Raises:
            EngineError: if the layer has one of these features; or if the plug-in did not configure the engine.
        """
        refused = {
            "attention sinks": sinks is not None,
            "ALiBi": alibi_slopes is not None,
            "a soft cap of its logits": bool(logits_soft_cap),
            "another layer's cache": shared_layer is not None,
        }
        for what, present in refused.items():
            if present:
                hint = "use transformers with sparsemm.compressed_cache"
                raise EngineError(f"a layer with {what} is not served with a compressed cache", hint=hint)
        plan = plan_of(get_current_vllm_config())
        if plan is None:
            hint = "leave the attention backend to vLLM, or ask for a compressed cache in additional_config"
            raise EngineError("the plug-in's attention runs without its options", hint=hint)
        self.plan, self.policy = plan, policy_of(plan)
        self.kernel: TorchKernel | None = None  # the builder's

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
        if attn_metadata is None:  # while vLLM measures the model
            return output.fill_(0)
        if not isinstance(attn_metadata, HeadwiseMetadata):
            what = f"a layer that should be compressed has metadata of {type(attn_metadata).__name__}"
            raise EngineError(what, where=layer.layer_name)
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
