"""The attention backend, the model runner and the worker for vLLM's CUDA platform; not run on a GPU yet.

vLLM captures decode steps in CUDA graphs: what attention does is recorded once for each batch size, and replayed with
the tensors of that time. So a step in which every request has one token behind its prompt writes what attention reads
into buffers that stay where they are. A step with tokens of a prompt is never captured, because compression asks how
many rows were kept.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from vllm.v1.attention.backend import AttentionBackend, AttentionCGSupport, CommonAttentionMetadata
from vllm.v1.attention.backends.fa_utils import get_flash_attn_version
from vllm.v1.kv_cache_interface import KVCacheLayout
from vllm.v1.worker.gpu_model_runner import GPUModelRunner
from vllm.v1.worker.gpu_worker import Worker

from sparsemm.vllm import log
from sparsemm.vllm.backend import HeadwiseBuilder, HeadwiseImpl
from sparsemm.vllm.kernels import FlashKernel, Sequences, TorchKernel
from sparsemm.vllm.spec import HeadwiseSpec
from sparsemm.vllm.step import HeadwiseMetadata
from sparsemm.vllm.worker import Headwise, refuse_second_runner


def flash_version(spec: HeadwiseSpec) -> int | None:
    """Returns the version of FlashAttention that serves a cache on this device, None if PyTorch has to."""
    if spec.dtype not in (torch.float16, torch.bfloat16) or spec.head_size % 8 or spec.head_size > 256:
        return None
    if spec.block_size % 16:
        return None
    version: int | None = get_flash_attn_version(head_size=spec.head_size, kv_cache_block_size=spec.block_size)
    return version


class CudaBackend(AttentionBackend):
    """The backend of compressed layers; the others have one of vLLM's."""

    supported_dtypes: ClassVar[list[torch.dtype]] = [torch.float16, torch.bfloat16, torch.float32]

    @staticmethod
    def get_name() -> str:
        """vLLM's name for a backend of a plug-in."""
        return "CUSTOM"

    @classmethod
    def supported_kv_cache_layouts(cls) -> tuple[KVCacheLayout, ...]:
        """Head by head within a block, which makes a lane one piece of memory."""
        return (KVCacheLayout.LBHNC,)

    @staticmethod
    def get_impl_cls() -> type[CudaImpl]:
        """Returns `CudaImpl`."""
        return CudaImpl

    @staticmethod
    def get_builder_cls() -> type[CudaBuilder]:
        """Returns `CudaBuilder`."""
        return CudaBuilder


class CudaBuilder(HeadwiseBuilder):
    """Makes the metadata of a step; that of a step which may be captured lies in buffers."""

    def __init__(self, kv_cache_spec: HeadwiseSpec, layer_names: list[str], vllm_config: Any, device: Any) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        self.longest = vllm_config.model_config.max_model_len
        shape = (len(layer_names), self.captured_requests() * self.heads)
        self.slots = torch.zeros(shape, dtype=torch.int64, device=device)
        self.lengths = torch.zeros(shape, dtype=torch.int32, device=device)
        self.lanes = torch.zeros(*shape, -(-self.longest // self.size), dtype=torch.int32, device=device)
        self.starts = torch.arange(shape[1] + 1, dtype=torch.int32, device=device)

    def captured_requests(self) -> int:
        """The most requests of a step that vLLM captures."""
        compilation = self.vllm_config.compilation_config
        if not compilation.cudagraph_mode.has_full_cudagraphs():
            return 0
        return min(self.vllm_config.scheduler_config.max_num_seqs, compilation.max_cudagraph_capture_size or 0)

    @classmethod
    def get_cudagraph_support(cls, vllm_config: Any, kv_cache_spec: Any) -> AttentionCGSupport:
        """Steps with one token of each request, where FlashAttention serves the cache."""
        if flash_version(kv_cache_spec) is None:
            return AttentionCGSupport.NEVER
        return AttentionCGSupport.UNIFORM_SINGLE_TOKEN_DECODE

    def choose_kernel(self) -> TorchKernel:
        """FlashAttention where it serves the cache."""
        version = flash_version(self.spec)
        if version is None:
            what = f"{self.spec.dtype}, head size {self.spec.head_size}, blocks of {self.size}"
            log.warning("sparsemm: FlashAttention does not serve %s on this device, PyTorch computes instead", what)
            return TorchKernel()
        from vllm._custom_ops import reshape_and_cache_flash
        from vllm.v1.attention.backends.fa_utils import flash_attn_varlen_func

        return FlashKernel(version, flash_attn_varlen_func, reshape_and_cache_flash, self.device)

    def build_for_cudagraph_capture(self, common_attn_metadata: CommonAttentionMetadata) -> HeadwiseMetadata:
        """A step of which no token belongs to a request, as when vLLM captures or has nothing to compute."""
        return self.describe(common_attn_metadata, [], np.zeros(0, dtype=np.int64))

    def describe(self, common: CommonAttentionMetadata, ids: list[str], lengths: Any) -> HeadwiseMetadata:
        """The metadata of a step; rows of the batch without a request are padding."""
        step = super().describe(common, ids, lengths)
        requests = common.num_reqs
        one_each = common.num_actual_tokens == requests and step.before is None
        if one_each and requests * self.heads <= self.slots.shape[1]:
            step.after = self._buffered(step.after, requests)
        return step

    def _buffered(self, step: Sequences | None, requests: int) -> Sequences:
        """One token of each request, from the buffers; what no request has is skipped or has no rows."""
        count, total = 0, requests * self.heads
        if step is not None:
            count, runs = step.slots.shape[1], min(step.lanes.shape[2], self.lanes.shape[2])
            self.slots[:, :count] = step.slots
            self.lengths[:, :count] = step.lengths
            self.lanes[:, :count, :runs] = step.lanes[..., :runs]
        self.slots[:, count:total] = -1
        self.lengths[:, count:total] = 0
        return Sequences(
            query_lens=[1] * requests,
            rows=None,
            starts=self.starts[: total + 1],
            slots=self.slots[:, :total],
            lengths=self.lengths[:, :total],
            lanes=self.lanes[:, :total],
            longest=[self.longest] if step is None else step.longest,
            schedule=[],
        )


class CudaImpl(HeadwiseImpl):
    """Attention of one layer.

    Raises:
        EngineError: if the layer has sinks, ALiBi, a soft cap, or shares another layer's cache.
    """

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int,
        alibi_slopes: list[float] | None,
        sliding_window: int | None,
        kv_cache_dtype: str,
        logits_soft_cap: float | None = None,
        attn_type: str = "decoder",
        kv_sharing_target_layer_name: str | None = None,
        sinks: torch.Tensor | None = None,
    ) -> None:
        self.num_heads, self.head_size, self.scale, self.num_kv_heads = num_heads, head_size, float(scale), num_kv_heads
        self.kv_cache_dtype, self.attn_type = kv_cache_dtype, attn_type
        self.adopt(sinks, alibi_slopes, logits_soft_cap, kv_sharing_target_layer_name)


class CudaRunner(Headwise, GPUModelRunner):
    """A model runner that tells its attention backend which requests run, and how long their prompts are."""

    def initialize_kv_cache(self, *args: Any, **options: Any) -> None:
        """Allocates the cache, and connects the backend with the running requests."""
        self.builders = []  # and their buffers, of the time when vLLM measured its memory
        super().initialize_kv_cache(*args, **options)
        self.connect(self)

    def _is_uniform_decode(self, *args: Any, force_uniform_decode: bool | None = None, **options: Any) -> bool:
        """Whether a captured step may be replayed.

        vLLM counts tokens only, so to it the last token of a prompt that comes alone is a decode step too.
        """
        batch = self.input_batch
        if force_uniform_decode is None:
            count = batch.num_reqs
            if (batch.num_computed_tokens_cpu[:count] < batch.num_prompt_tokens[:count]).any():
                return False
        uniform: bool = super()._is_uniform_decode(*args, force_uniform_decode=force_uniform_decode, **options)
        return uniform


class CudaWorker(Worker):
    """vLLM's worker with `CudaRunner`."""

    def _make_model_runner(self) -> CudaRunner:
        """Returns the model runner.

        Raises:
            EngineError: if the engine has model runner V2.
        """
        refuse_second_runner(self)
        return CudaRunner(self.vllm_config, self.device)
