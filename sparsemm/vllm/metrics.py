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
    "requests_ended_early": "Requests that were not answered: aborted or failed before their prompts were complete.",
    "prompt_rows": "Rows (a key and a value of one KV head) of the prompts of answered requests.",
    "kept_rows": "Rows of these that were kept.",
    "blocks_freed": "Blocks that were given back when a prompt was compressed.",
}


GAUGES = {
    "kv_bytes_held": "Bytes of the blocks that are in use.",
    "kv_rows_held": "Rows that the blocks in use have room for.",
    "compression_ratio": "Rows of the prompts of answered requests, for each row of them that was kept.",
}


@cache
def _metrics() -> tuple[dict[str, Counter], dict[str, Gauge], Gauge]:
    """The counters and gauges by name, and a constant that names table and method; made once."""
    counters = {name: Counter(PREFIX + name, text) for name, text in COUNTERS.items()}
    gauges = {name: Gauge(PREFIX + name, text, multiprocess_mode="mostrecent") for name, text in GAUGES.items()}
    about = Gauge(
        PREFIX + "info", "1; its labels name what the cache is compressed by.",
        ["method", "budget", "window", "scores", "digest"], multiprocess_mode="mostrecent",
    )  # fmt: skip
    return counters, gauges, about


class HeadwiseMetrics(StatLoggerBase):
    """vLLM calls this after every step; for an engine that does not compress it does nothing."""

    def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
        self.plan, self.cache = plan_of(vllm_config), vllm_config.cache_config
        if self.plan is None:
            return
        model = vllm_config.model_config
        self.counters, self.gauges, about = _metrics()
        self.row_bytes = 2 * model.get_head_size() * model.dtype.itemsize
        # Blocks of all groups share a pool; a block holds rows of the layers of one group.
        layers = len(self.plan.layers) // len(self.plan.buckets)
        self.block_rows = layers * self.plan.num_kv_heads * self.cache.block_size
        self.prompt_rows = self.kept_rows = 0
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
            # The share is of the blocks without the null block.
            rows = round(scheduler_stats.kv_cache_usage * ((self.cache.num_gpu_blocks or 1) - 1)) * self.block_rows
            self.gauges["kv_rows_held"].set(rows)
            self.gauges["kv_bytes_held"].set(rows * self.row_bytes)
        for request in [] if iteration_stats is None else iteration_stats.finished_requests:
            if request.num_generation_tokens > 0:
                self.count(request.num_prompt_tokens)
            else:
                self.counters["requests_ended_early"].inc()

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
        self.prompt_rows, self.kept_rows = self.prompt_rows + whole, self.kept_rows + kept
        self.gauges["compression_ratio"].set(self.prompt_rows / self.kept_rows)

    def log_engine_initialized(self) -> None:
        """Nothing: the engine's start says it."""
