"""An engine's tokens are those of transformers with our cache, whatever the engine does with its blocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.vllm import flash
from tests.vllm.engines import Ask, asks, assert_answers, engine, numbers, run, table, texts

QWEN = "tiny-qwen2-vl"
MIXED = asks(4) + texts((5, 30, 90)) + asks(2, pages=2)
SMALL_POOL = 150  # blocks: preemptions come


@pytest.fixture(scope="module")
def scores(folder):
    """Paths of score tables by checkpoint."""
    return {name: str(table(name, folder)) for name in (QWEN, "small-qwen2-vl")}


def check(name: str, requests: list[Ask], cache: dict[str, Any], groups: int | None = None, **options: Any) -> None:
    """Fails unless an engine answers as transformers does."""
    with engine(name, cache | {"groups": groups}, **options) as llm:
        answers = run(llm, name, requests)
    equal = assert_answers(name, requests, answers, **cache)
    assert equal >= 0.8 * len(requests)


@pytest.mark.parametrize("method", ["full", "snapkv", "pyramidkv", "random", "streaming", "sparsemm"])
def test_methods(method, scores):
    cache = dict(method=method, budget=24, window=4) | ({"scores": scores[QWEN]} if method == "sparsemm" else {})
    check(QWEN, MIXED, cache)


@pytest.mark.parametrize("name", ["small-qwen2-vl", "tiny-llava-next-mistral", "tiny-llava-next-vicuna"])
def test_checkpoints(name, folder):
    check(name, asks(4) + texts((30,)), dict(method="sparsemm", budget=24, window=4, scores=str(table(name, folder))))


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_groups(groups, scores):
    check(QWEN, MIXED, dict(method="sparsemm", budget=40, window=8, scores=scores[QWEN]), groups)


@pytest.mark.parametrize("size,chunk", [(8, 90), (16, 37), (32, 64), (16, 20)])
def test_chunks_and_block_sizes(size, chunk, scores):
    cache = dict(method="sparsemm", budget=48, window=32, scores=scores[QWEN])
    check(QWEN, MIXED, cache, block_size=size, max_num_batched_tokens=chunk, max_num_seqs=8)


@pytest.fixture
def cuda_classes(monkeypatch):
    """Engines on this CPU get the backend and the model runner for CUDA, with a stand-in for FlashAttention.

    Decode steps are padded to four requests at a time and, as a CUDA graph would, compute with the metadata of the time
    when a step of that size was first seen. The value is the number of such steps by their padded size.
    """
    from vllm.config import CUDAGraphMode
    from vllm.forward_context import BatchDescriptor
    from vllm.v1.worker import cpu_worker

    from sparsemm.vllm import cpu, cuda, settings
    from sparsemm.vllm.kernels import FlashKernel

    replays: dict[int, int] = {}

    class Builder(cuda.CudaBuilder):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.captured: dict[int, Any] = {}

        def captured_requests(self) -> int:
            return 8

        def choose_kernel(self) -> FlashKernel:
            return FlashKernel(**flash.kernel_options(self.device, (torch.float32,)))

        def build(self, common_prefix_len: int, common: Any, fast_build: bool = False) -> Any:
            requests, replayed = common.num_reqs, common.num_reqs == Runner.padded
            if replayed and requests not in self.captured:
                self.captured[requests] = self.build_for_cudagraph_capture(common)
            step = super().build(common_prefix_len, common, fast_build)
            return self.captured[requests] if replayed else step

    class Runner(cuda.CudaRunner, cpu_worker.CPUModelRunner):
        padded: int | None = None

        def _determine_batch_execution_and_padding(self, *args: Any, **options: Any) -> Any:
            mode, descriptor, *rest = super()._determine_batch_execution_and_padding(*args, **options)
            step = {name: options[name] for name in ("num_tokens", "num_reqs", "max_num_scheduled_tokens")}
            Runner.padded = None
            if self._is_uniform_decode(uniform_decode_query_len=1, **step):
                size = Runner.padded = -(-options["num_reqs"] // 4) * 4
                replays[size] = replays.get(size, 0) + 1
                mode, descriptor = CUDAGraphMode.FULL, BatchDescriptor(size, size, uniform=True)
            return mode, descriptor, *rest

    monkeypatch.setattr(cuda.CudaBackend, "get_builder_cls", lambda: Builder)
    for name in ("get_impl_cls", "get_builder_cls"):
        monkeypatch.setattr(cpu.CpuBackend, name, getattr(cuda.CudaBackend, name))
    monkeypatch.setattr(cpu.CpuBackend, "forward_includes_kv_cache_update", True)
    monkeypatch.setattr(cpu_worker, "CPUModelRunner", Runner)
    monkeypatch.setitem(settings.WORKERS, "cpu", "vllm.v1.worker.cpu_worker.CPUWorker")
    return replays


@pytest.mark.parametrize("chunk,groups,size", [(512, 4, 8), (37, 1, 4)])
def test_the_classes_for_cuda(chunk, groups, size, scores, cuda_classes):
    name = "small-qwen2-vl"  # heads of 16; those of 12 are nothing for FlashAttention
    cache = dict(method="sparsemm", budget=24, window=4, scores=scores[name])
    requests = asks(4) + texts((5, 30, 90))
    check(name, requests, cache, groups, max_num_batched_tokens=chunk, max_num_seqs=8)
    assert sum(cuda_classes.values()) > 10 and size in cuda_classes


def test_the_classes_for_cuda_where_a_prompt_ends_with_a_single_token(cuda_classes):
    """vLLM takes such a step for a decode step, and a replay would leave the prompt uncompressed."""
    cache = dict(method="snapkv", budget=24, window=4)
    requests = numbers((41, 81, 41))
    with engine("llama", cache, max_num_batched_tokens=40, max_num_seqs=8) as llm:
        answers = [run(llm, "llama", [request])[0] for request in requests]
    assert assert_answers("llama", requests, answers, **cache) >= 2 and cuda_classes
