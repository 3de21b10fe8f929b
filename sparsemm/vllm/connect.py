"""Registers the KV cache spec with its manager, and the attention backend."""

from __future__ import annotations

from typing import Any

from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend
from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry

from sparsemm.errors import EngineError
from sparsemm.vllm.manager import HeadwiseManager
from sparsemm.vllm.settings import plan_of
from sparsemm.vllm.spec import HeadwiseSpec

FULL = "full_attention"  # vLLM's name of the layers that are compressed


def connect(platform: str) -> None:
    """Registers both for a platform of vLLM; another call changes nothing."""
    # vLLM registers its own specs only while the list is empty, so they come first.
    KVCacheSpecRegistry._ensure_registered()
    KVCacheSpecRegistry.register(HeadwiseSpec, HeadwiseManager, uniform_type_base_spec=HeadwiseSpec)
    if platform == "cpu":
        # vLLM's CPU platform asks for CPU_ATTN whatever is chosen. Ours is vLLM's own for engines that do not compress.
        register_backend(AttentionBackendEnum.CPU_ATTN, "sparsemm.vllm.cpu.CpuBackend")
    elif platform == "cuda":
        register_backend(AttentionBackendEnum.CUSTOM, "sparsemm.vllm.cuda.CudaBackend")


def choose_backend(vllm_config: Any, platform: str) -> None:
    """On CUDA, chooses the backend for the layers that are compressed; vLLM chooses that of the others.

    Raises:
        EngineError: if the options of the engine name another one.
    """
    if platform != "cuda" or plan_of(vllm_config) is None:
        return
    chosen = vllm_config.attention_config.backend_per_kind
    if chosen.setdefault(FULL, AttentionBackendEnum.CUSTOM) is not AttentionBackendEnum.CUSTOM:
        what = f"{chosen[FULL].name} of backend_per_kind is not served with a compressed cache"
        raise EngineError(what, hint=f"leave {FULL} out")
