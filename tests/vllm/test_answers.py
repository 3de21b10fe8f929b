"""An engine's tokens are those of transformers with our cache, whatever the engine does with its blocks."""

from __future__ import annotations

from typing import Any

import pytest

from tests.vllm.engines import Ask, asks, assert_answers, engine, run, table, texts

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
