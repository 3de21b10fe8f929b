"""The attention backend and the worker for vLLM's CPU platform."""

from __future__ import annotations

from typing import Any

import torch
from vllm import envs
from vllm.config import get_current_vllm_config
from vllm.v1.attention.backend import CommonAttentionMetadata, MultipleOf
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadataBuilder,
    _get_attn_isa,
)
from vllm.v1.worker.cpu_worker import CPUWorker

from sparsemm.vllm.backend import HeadwiseBuilder, HeadwiseImpl
from sparsemm.vllm.kernels import CpuKernel, TorchKernel
from sparsemm.vllm.settings import plan_of
from sparsemm.vllm.spec import HeadwiseSpec
from sparsemm.vllm.worker import Headwise, refuse_second_runner


class CpuBackend(CPUAttentionBackend):
    """vLLM's own backend for engines without compression, and for layers that are not compressed."""

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[int | MultipleOf]:
        """Any block size, for compressed layers."""
        if isinstance(kv_cache_spec, HeadwiseSpec):
            return [MultipleOf(1)]
        return CPUAttentionBackend.get_supported_kernel_block_sizes(kv_cache_spec)

    @staticmethod
    def get_impl_cls() -> type[CPUAttentionBackendImpl]:
        """Returns `CpuImpl` for an engine that compresses, else vLLM's own class.

        Raises:
            EngineError: if the options ask for compression but the plug-in did not configure the engine.
        """
        return CPUAttentionBackendImpl if plan_of(get_current_vllm_config()) is None else CpuImpl

    @staticmethod
    def get_builder_cls() -> type[CPUAttentionMetadataBuilder]:
        """Returns `CpuBuilder`, which acts as vLLM's own builder for layers that are not compressed."""
        return CpuBuilder


class CpuBuilder(HeadwiseBuilder, CPUAttentionMetadataBuilder):
    """Makes the metadata of a step, which is vLLM's own for layers that are not compressed."""

    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: torch.device) -> None:
        self.headwise = isinstance(kv_cache_spec, HeadwiseSpec)
        kind = HeadwiseBuilder if self.headwise else CPUAttentionMetadataBuilder
        kind.__init__(self, kv_cache_spec, layer_names, vllm_config, device)

    def choose_kernel(self) -> TorchKernel:
        """vLLM's paged attention where it serves the head size."""
        dim, dtype, config = self.spec.head_size, self.spec.dtype, self.vllm_config
        if dim not in CPUAttentionBackend.get_supported_head_sizes():
            return TorchKernel()
        group = config.model_config.get_num_attention_heads(config.parallel_config) // self.heads
        isa = _get_attn_isa(dtype, self.size, dim, config.cache_config.cache_dtype)
        return CpuKernel(isa, group, dim, self.size, dtype, envs.VLLM_CPU_ATTN_SPLIT_KV)

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> Any:
        """The metadata of the step that vLLM describes, see `HeadwiseBuilder.build`."""
        kind = HeadwiseBuilder if self.headwise else CPUAttentionMetadataBuilder
        return kind.build(self, common_prefix_len, common_attn_metadata, fast_build)


class CpuImpl(HeadwiseImpl, CPUAttentionBackendImpl):
    """Attention of one layer; a sliding-window layer is vLLM's own.

    Raises:
        EngineError: if the layer has sinks, ALiBi, a soft cap, or shares another layer's cache.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        CPUAttentionBackendImpl.__init__(self, *args, **options)
        self.headwise = self.sliding_window == -1 and self.attn_type == "decoder"
        if self.headwise:
            self.adopt(self.sinks, self.alibi_slopes, self.logits_soft_cap, self.kv_sharing_target_layer_name)

    def do_kv_cache_update(self, *args: Any, **options: Any) -> None:
        """Nothing for a compressed layer, whose rows are written with its attention."""
        if not self.headwise:
            super().do_kv_cache_update(*args, **options)

    def forward(self, *args: Any, **options: Any) -> torch.Tensor:
        """Attention of one layer, see `HeadwiseImpl.forward`."""
        kind = HeadwiseImpl if self.headwise else CPUAttentionBackendImpl
        return kind.forward(self, *args, **options)


class CpuWorker(Headwise, CPUWorker):
    """A worker that tells its attention backend which requests run, and how long their prompts are."""

    def initialize_from_config(self, kv_cache_config: Any) -> None:
        """Allocates the cache, and connects the backend with the running requests.

        Raises:
            EngineError: if vLLM's model runner does not say which requests run.
        """
        super().initialize_from_config(kv_cache_config)
        refuse_second_runner(self)
        self.connect(self.model_runner)
