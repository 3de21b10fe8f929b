"""The KV cache spec of layers whose heads keep different numbers of rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheSpec

from sparsemm.vllm.plan import Plan


@dataclass(frozen=True, kw_only=True)
class HeadwiseSpec(FullAttentionSpec):
    """Layers with an equal spec share a block table; others get another group of vLLM's, and a table of their own.

    Attributes:
        plan: how many rows each head keeps.
        bucket: positions in `plan.layers` of the layers that share the table.
    """

    plan: Plan
    bucket: tuple[int, ...]

    @property
    def prefix_cacheable(self) -> bool:
        """Whether prompt blocks keep their rows; else they are rewritten in place when the prompt ends."""
        return self.plan.copy

    @classmethod
    def merge(cls, specs: list[Self]) -> Self:
        """The spec of a group, in which all are equal."""
        assert all(spec == specs[0] for spec in specs)
        return specs[0]

    def is_uniform_with_collection(self, kv_cache_specs: dict[str, KVCacheSpec]) -> bool:
        """Whether all specs are this one."""
        return all(spec == self for spec in kv_cache_specs.values())

    def max_num_blocks_per_req(self, vllm_config: Any, max_len: int) -> int:
        """Columns of a request's block table; a head may ask for a page one block before its row would."""
        return (2 if self.plan.copy else 1) * -(-max_len // self.block_size) + 1

    def max_memory_usage_bytes(self, vllm_config: Any) -> int:
        """Bytes of a request of the longest length, from which vLLM decides whether the pool is large enough."""
        columns = self.max_num_blocks_per_req(vllm_config, vllm_config.model_config.max_model_len)
        return columns * self.page_size_bytes
