"""Registers the KV cache spec with its manager, and the attention backend."""

from __future__ import annotations

from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend
from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry

from sparsemm.vllm.manager import HeadwiseManager
from sparsemm.vllm.spec import HeadwiseSpec


def connect() -> None:
    """Registers both; another call changes nothing."""
    # vLLM registers its own specs only while the list is empty, so they come first.
    KVCacheSpecRegistry._ensure_registered()
    KVCacheSpecRegistry.register(HeadwiseSpec, HeadwiseManager, uniform_type_base_spec=HeadwiseSpec)
    # vLLM's CPU platform asks for CPU_ATTN whatever is chosen. Ours is vLLM's own for engines that do not compress.
    register_backend(AttentionBackendEnum.CPU_ATTN, "sparsemm.vllm.backend.HeadwiseBackend")
