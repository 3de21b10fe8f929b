"""The same requests to vLLM with and without SparseMM, in equal KV memory: `python -m benchmarks.vllm`.

Runs in the environment of `make vllm`. The two kinds take turns, each time with a new engine. The model has random
weights and heads of 64, so vLLM's own kernel serves both kinds. With random weights tokens mean nothing, so only
counts, times and bytes are reported.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    "small": dict(
        hidden_size=512, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=4,
        vocab_size=512,
    ),
    "135m": dict(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        vocab_size=49152,
    ),
    "1b": dict(
        hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8,
        vocab_size=32000,
    ),
}  # fmt: skip
KINDS = ("stock", "sparsemm")
STORED = Path("artifacts/benchmarks/vllm.json")
RUNNING = 20  # requests, for the scheduler's cost


def build(shape: str, folder: Path) -> None:
    """Writes a Llama checkpoint of a shape with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(**SHAPES[shape], max_position_embeddings=8192, tie_word_embeddings=True)
    model: Any = LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)


@contextmanager
def started(folder: str, kind: str, options: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """An engine in this process, with its scheduler."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    compress = dict(method="random", budget=options["budget"], window=32, groups=options["groups"])
    llm = LLM(
        folder,
        dtype=options["dtype"],
        enforce_eager=True,
        skip_tokenizer_init=True,
        block_size=options["block_size"],
        max_model_len=options["prompt"] + options["new"],
        max_num_batched_tokens=max(options["prompt"], 2048),
        kv_cache_memory_bytes=options["memory"],
        enable_prefix_caching=options["prefix_caching"],
        disable_log_stats=True,
        seed=0,
        additional_config={} if kind == "stock" else {"sparsemm": compress},
    )
    engine: Any = llm.llm_engine
    try:
        yield engine, engine.engine_core.engine_core.scheduler
    finally:
        engine.engine_core.shutdown()
        del llm, engine
        cleanup_dist_env_and_memory()
        gc.collect()


def send(engine: Any, count: int, prompt: int, new: int) -> None:
    """Sends requests of random tokens, whose outputs come token by token."""
    import numpy as np
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    rng = np.random.default_rng(0)
    vocabulary = engine.model_config.get_vocab_size()
    parameters = SamplingParams(
        max_tokens=new, temperature=0, ignore_eos=True, detokenize=False, output_kind=RequestOutputKind.DELTA
    )
    for number in range(count):
        tokens = rng.integers(3, vocabulary, prompt).tolist()
        engine.add_request(str(number), {"prompt_token_ids": tokens}, parameters)


def measure(engine: Any, scheduler: Any, options: dict[str, Any]) -> dict[str, float]:
    """Serves all requests with one engine."""
    count, new = options["requests"], options["new"]
    send(engine, count, options["prompt"], new)
    pool = scheduler.kv_cache_manager.block_pool
    running: list[int] = []
    used: list[float] = []
    decode: list[tuple[int, float]] = []  # requests and seconds of steps without a prompt
    first: dict[str, float] = {}
    began, began_cpu = time.perf_counter(), time.process_time()
    while engine.has_unfinished_requests():
        before, waiting = time.perf_counter(), len(scheduler.waiting)
        outputs = engine.step()
        seconds = time.perf_counter() - before
        running.append(len(scheduler.running))
        if len(scheduler.waiting) == waiting and all(output.request_id in first for output in outputs):
            decode.append((len(outputs), seconds))
        if scheduler.running:
            used.append((pool.num_gpu_blocks - 1 - pool.get_num_free_blocks()) / len(scheduler.running))
        for output in outputs:
            first.setdefault(output.request_id, time.perf_counter() - began)
    seconds, cpu = time.perf_counter() - began, time.process_time() - began_cpu
    most = max(running)
    groups = scheduler.kv_cache_config.kv_cache_groups
    block = groups[0].kv_cache_spec.page_size_bytes * len(groups[0].layer_names)
    return {
        "requests at once": most,
        "steps": len(running),
        "seconds": seconds,
        "CPU seconds": cpu,
        "tokens a second": count * new / seconds,
        "tokens a CPU second": count * new / cpu,
        "seconds to first token": statistics.mean(first.values()),
        "ms a decode step": 1000 * statistics.median(time for at_once, time in decode if at_once >= 0.8 * most),
        "KV bytes a request": statistics.median(used) * block,
    }


def measure_scheduler(engine: Any, scheduler: Any, options: dict[str, Any]) -> dict[str, float]:
    """The scheduler's CPU time a step with `RUNNING` requests that decode; the model is not run."""
    from vllm.v1.outputs import ModelRunnerOutput

    send(engine, RUNNING, options["prompt"], options["new"])

    def timed(function: Callable[..., Any], *args: Any) -> tuple[Any, float]:
        begin = time.thread_time()  # not what other processes take
        result = function(*args)
        return result, 1000 * (time.thread_time() - begin)

    spent = []
    for _ in range(options["new"] // 2):
        planned, schedule = timed(scheduler.schedule)
        ids = list(planned.num_scheduled_tokens)
        decoding = [scheduler.requests[i].num_computed_tokens >= options["prompt"] for i in ids]
        sampled = ModelRunnerOutput(
            req_ids=ids,
            req_id_to_index={name: i for i, name in enumerate(ids)},
            sampled_token_ids=[[7] if each else [] for each in decoding],
        )
        _, update = timed(scheduler.update_from_output, planned, sampled)
        if len(ids) == RUNNING and all(decoding):
            spent.append((schedule, update))
    schedule, update = (statistics.median(part) for part in zip(*spent[10:], strict=True))
    return {
        "scheduling, ms a step": schedule,
        "update, ms a step": update,
        "groups of layers": len(scheduler.kv_cache_config.kv_cache_groups),
    }


def compare(what: Callable[..., Any], folder: str, options: dict[str, Any], rounds: int) -> dict[str, Any]:
    """All measurements of both kinds."""
    results: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for _ in range(rounds):
        for kind in KINDS:
            with started(folder, kind, options) as (engine, scheduler):
                results[kind].append(what(engine, scheduler, options))
            print(kind, results[kind][-1], file=sys.stderr, flush=True)
    return {"options": options, "results": results}


def table(comparison: dict[str, Any]) -> list[str]:
    """The medians of both kinds and their ratio, as lines of Markdown."""
    results = comparison["results"]
    lines = ["| | stock | sparsemm | ratio |", "|---|---|---|---|"]
    for name in results["stock"][0]:
        stock, ours = (statistics.median(run[name] for run in results[kind]) for kind in KINDS)
        lines.append(f"| {name} | {stock:.4g} | {ours:.4g} | {ours / stock:.2f} |")
    return lines


def main() -> None:
    """Measures both kinds in turn, and prints the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--requests", type=int, default=48)
    parser.add_argument("--prompt", type=int, default=768, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--budget", type=int, help="mean slots per KV head (default: a sixth of the prompt)")
    parser.add_argument("--groups", type=int, help="block tables (default: the plug-in's choice)")
    parser.add_argument("--memory", type=int, default=0, help="bytes of KV cache (default: five whole requests)")
    parser.add_argument("--block-size", type=int, default=32)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--prefix-caching", action="store_true")
    parser.add_argument("--scheduler", action="store_true", help="only what the scheduler costs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help=f"file for all measurements, such as {STORED}")
    arguments = vars(parser.parse_args())
    names = (
        "shape",
        "requests",
        "prompt",
        "new",
        "budget",
        "groups",
        "memory",
        "block_size",
        "dtype",
        "prefix_caching",
    )
    options = {name: arguments[name] for name in names}
    options["budget"] = options["budget"] or options["prompt"] // 6
    shape = SHAPES[options["shape"]]
    row = (
        2 * 64 * (4 if options["dtype"] == "float32" else 2) * shape["num_key_value_heads"] * shape["num_hidden_layers"]
    )
    blocks = -(-(options["prompt"] + options["new"]) // options["block_size"])
    options["memory"] = options["memory"] or int(5.2 * blocks * options["block_size"] * row)
    what = measure_scheduler if arguments["scheduler"] else measure
    if arguments["scheduler"]:
        options |= {"new": 800, "memory": 1 << 29}
    with tempfile.TemporaryDirectory() as folder:
        build(options["shape"], Path(folder))
        comparison = compare(what, folder, options, arguments["rounds"])
    if file := arguments["json"]:
        stored = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        stored[what.__name__] = comparison
        file.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    print("\n".join(table(comparison)))


if __name__ == "__main__":
    main()
