"""`python -m benchmarks graph`: times decode steps of a whole model after a long prompt, captured in a CUDA graph."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from transformers import StaticCache

from sparsemm.cache import CompressedCache, compressed_cache
from sparsemm.cache.graphs import WARM_UP, DecodeStep, warm_up
from sparsemm.profiling import clock
from sparsemm.profiling.bench.caches import ours
from sparsemm.profiling.bench.setting import BenchResult, Setting
from sparsemm.profiling.held_bytes import cache_bytes, weight_bytes
from sparsemm.profiling.shapes import random_model

STEPS = 8  # timed steps in every turn; one more before them captures
ROOM = WARM_UP + 2 + STEPS  # tokens that a cache has room for
LARGEST, MOST = 36e9, 16  # largest bytes of a full cache, and rows of a batch

Step = Callable[[], torch.Tensor]


class StaticStep:
    """`DecodeStep` with transformers' static cache and sdpa, its fastest variant without a compiler."""

    def __init__(self, model: Any, cache: StaticCache, tokens: torch.Tensor, position: int) -> None:
        self.model, self.cache, self.tokens = model, cache, tokens.clone()
        self.positions = torch.full_like(tokens, position)
        self.graph: torch.cuda.CUDAGraph | None = None

    def _run(self) -> None:
        inputs = {"input_ids": self.tokens, "position_ids": self.positions, "past_key_values": self.cache}
        self.tokens.copy_(self.model(**inputs, use_cache=True, logits_to_keep=1).logits[:, -1:].argmax(-1))
        self.positions += 1

    def __call__(self) -> torch.Tensor:
        """Returns the next token of every row (B, 1)."""
        if not self.tokens.is_cuda:
            self._run()
            return self.tokens
        if self.graph is None:
            warm_up(self._run, WARM_UP)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self._run()
        self.graph.replay()
        return self.tokens


def most_rows(setting: Setting) -> int:
    """Returns the rows of the larger batch, a power of 2 for which a full cache has at most `LARGEST` bytes."""
    one = setting.lengths[-1] * setting.shape.cache() * setting.dtype.itemsize
    most = max(1, min(MOST, int(LARGEST // one)))
    return 1 << most.bit_length() - 1


def other_rows(setting: Setting) -> int:
    """Returns the bytes of the full caches of all rows but the first; no model sees their prompts."""
    return (most_rows(setting) - 1) * setting.lengths[-1] * setting.shape.cache() * setting.dtype.itemsize


def run(setting: Setting) -> BenchResult:
    """Times steps after the longest prompt, of random keys and values, for one row and for the largest batch.

    `graph` is our cache, `full_graph` our cache that keeps everything, `static_graph` transformers' static cache. Each
    is created anew in every turn, because two full ones may exceed the memory. On a CPU nothing is captured.
    """
    rows, ratios = [], {}
    length, device = setting.lengths[-1], setting.device
    model = random_model(setting.shape, setting.dtype, device, length + ROOM)
    weights = weight_bytes(model)
    for batch in sorted({1, most_rows(setting)}):
        times, held = _turns(model, setting, batch, length)
        moved = {f"{name}_step": weights + size for name, size in held.items()}
        result = clock.summary(times, moved | {"copy": clock.copies(device)[1]})
        row = {"batch": batch, "length": length, "budget": min(setting.budget, length), "weight_bytes": weights}
        rows.append(row | {"captured": device.type == "cuda", "cache_bytes": held, "times": result})
        label = f"{setting.label(length)}_b{batch}"
        for other in ("full_graph", "static_graph"):
            ratios[f"{other}_over_graph_step_{label}"] = clock.ratio(times, f"{other}_step", "graph_step")
        read = weights / result["copy"]["bytes_per_second"]
        ratios[f"graph_step_over_weight_read_{label}"] = round(result["graph_step"]["seconds"][1] / read, 3)
    return rows, ratios


@torch.inference_mode()
def _turns(model: Any, setting: Setting, batch: int, length: int) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Measures the seconds of steps and of a copy, and the bytes that each cache holds."""
    times: dict[str, list[float]] = defaultdict(list)
    held: dict[str, int] = {}
    copy = clock.copies(setting.device)[0]
    tokens = torch.randint(3, setting.shape.vocab_size, (batch, 1), dtype=torch.int64, device=setting.device)
    makers: dict[str, Callable[[], tuple[Any, Step]]] = {
        "graph": lambda: _ours(model, setting, ours(model, setting, length, max_new_tokens=ROOM), tokens, length),
        "full_graph": lambda: _ours(model, setting, _full(model, length), tokens, length),
        "static_graph": lambda: _static(model, setting, tokens, length),
    }
    for _ in range(max(2, setting.repeats // 3)):
        for name, make in makers.items():
            cache, step = make()
            step()
            times[f"{name}_step"].extend(clock.seconds(step, setting.device) for _ in range(STEPS))
            held[name] = cache_bytes(cache)[0]
            del cache, step
            times["copy"].append(clock.seconds(copy, setting.device))
    return dict(times), held


def _full(model: Any, length: int) -> CompressedCache:
    return compressed_cache(model, "full", length, window=1, max_new_tokens=ROOM)


def _ours(
    model: Any, setting: Setting, cache: CompressedCache, tokens: torch.Tensor, length: int
) -> tuple[CompressedCache, Step]:
    """Returns the cache after a prompt of `length` tokens that no model has seen, and its step."""
    queries = len(tokens), setting.shape.num_attention_heads, setting.window, setting.shape.head_dim
    for layer in cache.ragged:
        keys, values = setting.layer(len(tokens), length)
        layer.update(keys, values)
        layer.compress(setting.normal(*queries, seed=2), keys, values, None, setting.shape.head_dim**-0.5)
    return cache, DecodeStep(model, cache, tokens, torch.full_like(tokens, length))


def _static(model: Any, setting: Setting, tokens: torch.Tensor, length: int) -> tuple[StaticCache, Step]:
    model.set_attn_implementation("sdpa")
    cache = StaticCache(config=model.config, max_cache_len=length + ROOM)
    for index in range(setting.shape.num_hidden_layers):
        cache.update(*setting.layer(len(tokens), length), index)
    return cache, StaticStep(model, cache, tokens, length)
