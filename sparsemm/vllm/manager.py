"""Allocates the blocks of a group of layers: for the whole prompt at first, and for the kept rows after compression."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from vllm.v1.core.kv_cache_utils import KVCacheBlock
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.request import Request

from sparsemm.errors import EngineError
from sparsemm.vllm.plan import Columns
from sparsemm.vllm.spec import HeadwiseSpec


class RequestBlocks:
    """The scheduler's record of a request's blocks in this group.

    Attributes:
        prompt: length of its prompt in tokens.
        columns: columns of its block table, which follow from that.
        limit: most tokens that its present columns can hold.
        compressed: whether the blocks of its whole prompt were freed.
        request: the request, once its blocks were offered to the prefix cache.
    """

    __slots__ = ("columns", "compressed", "limit", "prompt", "request")

    def __init__(self, columns: Columns) -> None:
        self.prompt, self.columns, self.limit, self.compressed = columns.prompt, columns, 0, False
        self.request: Request | None = None


class HeadwiseManager(FullAttentionManager):
    """A block manager that needs nothing from the worker, because row counts follow from the length of the prompt.

    A request's list of blocks never gets shorter: freed columns become the null block. The worker's block table, which
    only grows, has the same columns.
    """

    supports_fine_grained_hash_lookup = False  # a prefix ends at a block: the tail would be shared rows

    def __init__(self, kv_cache_spec: HeadwiseSpec, **options: Any) -> None:
        super().__init__(kv_cache_spec, **options)
        self.held: dict[str, RequestBlocks] = {}
        spec = kv_cache_spec
        self.columns_of = lru_cache(maxsize=4096)(
            lambda prompt: Columns.of(spec.plan, spec.bucket, spec.block_size, prompt)
        )

    def remove_skipped_blocks(
        self, request_id: str, processed_computed_tokens: int, num_prompt_tokens: int | None = None
    ) -> None:
        """Records the length of the prompt, and frees the blocks that compression empties once it is processed.

        vLLM calls this before it asks for blocks of a request.

        Raises:
            EngineError: if the prompt has become longer, as in a session that streams its input.
        """
        held = self.held.get(request_id)
        if held is None:
            if num_prompt_tokens is None:
                return
            held = self.held[request_id] = RequestBlocks(self.columns_of(num_prompt_tokens))
        elif num_prompt_tokens not in (held.prompt, None):
            what = f"a prompt of {held.prompt} tokens has become one of {num_prompt_tokens}"
            raise EngineError(what, where=f"request {request_id}", hint="send every turn as a request of its own")
        if not held.compressed and processed_computed_tokens >= held.prompt:
            self._remove_blocks_in_range(request_id, *held.columns.freed())
            held.compressed = True

    def get_num_blocks_to_allocate(
        self,
        request_id: str,
        num_tokens: int,
        new_computed_blocks: Sequence[KVCacheBlock],
        total_computed_tokens: int,
        num_local_computed_tokens: int,
        num_tokens_main_model: int,
        apply_admission_cap: bool = False,
        prefill_end: int = 0,
    ) -> int:
        """Returns the number of blocks that the request needs for `num_tokens` tokens, besides those it has."""
        held = self.held.get(request_id)
        if held is not None and num_tokens <= held.limit:
            return 0
        # The prompt length of a waiting request is not known yet; the end of its prefill is an upper bound.
        columns = self.columns_of(prefill_end) if held is None else held.columns
        present = len(self.req_to_blocks.get(request_id, ())) + len(new_computed_blocks)
        missing = max(columns.count(num_tokens) - present, 0)
        return missing + self._get_num_evictable_blocks(new_computed_blocks)

    def allocate_new_blocks(self, request_id: str, num_tokens: int, num_tokens_main_model: int) -> list[KVCacheBlock]:
        """Allocates the blocks that the request needs for `num_tokens` tokens, and returns the new ones."""
        held = self.held[request_id]
        if num_tokens <= held.limit:
            return []
        blocks = self.req_to_blocks[request_id]
        missing = held.columns.count(num_tokens) - len(blocks)
        new = self.block_pool.get_new_blocks(missing) if missing > 0 else []
        blocks.extend(new)
        held.limit = held.columns.limit(len(blocks))
        if self._record_new_block_ids:
            self.new_block_ids.extend(block.block_id for block in new)
        return new

    def cache_blocks(self, request: Request, num_tokens: int, *args: Any, **options: Any) -> None:
        """Offers prompt blocks to the prefix cache, except those of the window, whose queries must be computed."""
        held = self.held[request.request_id]
        held.request = request
        if not held.compressed:
            most = max(0, request.num_prompt_tokens - self.kv_cache_spec.plan.window)
            super().cache_blocks(request, min(num_tokens, most), *args, **options)

    @classmethod
    def find_longest_cache_hit(
        cls, block_hashes: Any, max_length: int, *args: Any, kv_cache_spec: HeadwiseSpec, **options: Any
    ) -> Any:
        """Returns the longest cached prefix outside the window, whose queries must be computed to rate other rows."""
        # vLLM passes the length that one group found on to the next one, so only one group shortens it.
        if 0 in kv_cache_spec.bucket:
            max_length = max(0, max_length - kv_cache_spec.plan.window + 1)
        return super().find_longest_cache_hit(block_hashes, max_length, *args, kv_cache_spec=kv_cache_spec, **options)

    def pop_blocks_for_free(self, request_id: str) -> list[KVCacheBlock]:
        """Removes a request that is finished or preempted, and returns its blocks."""
        held = self.held.pop(request_id, None)
        if held is not None and held.request is not None:
            # If it is resumed, a look-up could find its answer in the prompt of another request, and skip its window.
            held.request.skip_reading_prefix_cache = True
        return super().pop_blocks_for_free(request_id)
