"""What compression saves, at vLLM's own Prometheus endpoint.

How many rows a prompt keeps follows from its length, so the numbers are computed where vLLM counts requests, from the
plan that its scheduler and workers use.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from prometheus_client import Counter, Gauge
from vllm.v1.metrics.loggers import StatLoggerBase

from sparsemm.vllm.plan import Columns
from sparsemm.vllm.settings import KEY, plan_of

PREFIX = "sparsemm:"
COUNTERS = {
    "requests_compressed": "Requests that were answered from a compressed cache.",
    "requests_short": "Requests that were answered in full, since their prompts are shorter than the budget.",
    "prompt_rows": "Rows (a key and a value of one KV head) of the prompts of answered requests.",
    "kept_rows": "Rows of these that were kept.",
    "blocks_freed": "Blocks that were given back when a prompt was compressed.",
}


@cache
def _metrics() -> tuple[dict[str, Counter], Gauge, Gauge]:
    """The counters by name, the bytes that are held, and a constant that names table and method; made once."""
    counters = {name: Counter(PREFIX + name, text) for name, text in COUNTERS.items()}
    held = Gauge(PREFIX + "kv_bytes_held", "Bytes of the blocks that are in use.", multiprocess_mode="mostrecent")
    about = Gauge(
        PREFIX + "info", "1; its labels name what the cache is compressed by.",
        ["method", "budget", "window", "scores", "digest"], multiprocess_mode="mostrecent",
    )  # fmt: skip
    return counters, held, about


class HeadwiseMetrics(StatLoggerBase):
    """vLLM calls this after every step; for an engine that does not compress it does nothing."""

    def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
        self.plan, self.cache = plan_of(vllm_config), vllm_config.cache_config
        if self.plan is None:
            return
        model = vllm_config.model_config
        self.counters, self.held, about = _metrics()
        row = 2 * model.get_head_size() * model.dtype.itemsize
        # Blocks of all groups share a pool; a block holds rows of the layers of one group.
        layers = len(self.plan.layers) // len(self.plan.buckets)
        self.block_bytes = layers * self.plan.num_kv_heads * self.cache.block_size * row
        options = vllm_config.additional_config[KEY]
        plan = self.plan
        about.labels(plan.method, plan.budget, plan.window, options["scores"] or "", options["digest"] or "").set(1)

    def record(
        self,
        scheduler_stats: Any,
        iteration_stats: Any,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        """Counts the requests that finished, and what the running ones hold."""
        if self.plan is None:
            return
        if scheduler_stats is not None:
            self.held.set(scheduler_stats.kv_cache_usage * (self.cache.num_gpu_blocks or 0) * self.block_bytes)
        for request in [] if iteration_stats is None else iteration_stats.finished_requests:
            if request.num_generation_tokens > 0:  # else it was aborted before its prompt ended
                self.count(request.num_prompt_tokens)

    def count(self, prompt: int) -> None:
        """Counts a request whose prompt has so many tokens."""
        assert self.plan is not None
        rows = self.plan.rows(prompt)
        kept, whole = int(rows.sum()), rows.size * prompt
        columns = [Columns.of(self.plan, bucket, self.cache.block_size, prompt) for bucket in self.plan.buckets]
        freed = sum(each.whole - each.kept for each in columns)
        self.counters["requests_compressed" if kept < whole else "requests_short"].inc()
        for name, number in (("prompt_rows", whole), ("kept_rows", kept), ("blocks_freed", freed)):
            self.counters[name].inc(number)

    def log_engine_initialized(self) -> None:
        """Nothing: the engine's start says it."""
