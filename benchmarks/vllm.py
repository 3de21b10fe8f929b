"""The same requests to vLLM with and without SparseMM, in equal KV memory: `python -m benchmarks.vllm`.

Runs in the environment of `make vllm`. Every measurement is a process of its own; the two kinds take turns. The model
has random weights and heads of 64, so vLLM's own kernel serves both kinds. With random weights tokens mean nothing, so
only counts, times and bytes are reported.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    "small": dict(hidden_size=512, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=8, vocab_size=512),
    "1b": dict(
        hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, vocab_size=32000
    ),
}
KV_HEADS = {"small": 4, "1b": 8}


def build(shape: str, folder: Path) -> None:
    """Writes a Llama checkpoint of a shape with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        **SHAPES[shape], num_key_value_heads=KV_HEADS[shape], max_position_embeddings=8192, tie_word_embeddings=True
    )
    model: Any = LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)


def measure(folder: str, kind: str, options: dict[str, Any]) -> dict[str, float]:
    """One run of an engine over all requests."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    import numpy as np
    from vllm import LLM, SamplingParams

    prompt, new, count = options["prompt"], options["new"], options["requests"]
    compress = dict(method="random", budget=options["budget"], window=32, groups=options["groups"])
    llm = LLM(
        folder,
        dtype=options["dtype"],
        enforce_eager=True,
        skip_tokenizer_init=True,
        block_size=options["block_size"],
        max_model_len=prompt + new,
        max_num_batched_tokens=max(prompt, 2048),
        kv_cache_memory_bytes=options["memory"],
        enable_prefix_caching=options["prefix_caching"],
        disable_log_stats=True,
        seed=0,
        additional_config={} if kind == "stock" else {"sparsemm": compress},
    )
    engine = llm.llm_engine
    scheduler = engine.engine_core.engine_core.scheduler  # type: ignore[attr-defined]
    spent: list[float] = []
    schedule, update = scheduler.schedule, scheduler.update_from_output

    def timed(function: Any) -> Any:
        def call(*args: Any, **more: Any) -> Any:
            start = time.thread_time()  # not what other processes take
            result = function(*args, **more)
            spent[-1] += time.thread_time() - start
            return result

        return call

    scheduler.schedule, scheduler.update_from_output = timed(schedule), timed(update)
    rng = np.random.default_rng(0)
    vocabulary = engine.model_config.get_vocab_size()
    prompts = [{"prompt_token_ids": rng.integers(3, vocabulary, prompt).tolist()} for _ in range(count)]
    llm_prompts: Any = prompts
    parameters = SamplingParams(max_tokens=new, temperature=0, ignore_eos=True, detokenize=False)
    llm.enqueue(llm_prompts, parameters, use_tqdm=False)
    pool = scheduler.kv_cache_manager.block_pool
    running: list[int] = []
    used: list[tuple[int, int]] = []
    first: dict[str, float] = {}
    start = time.perf_counter()
    while engine.has_unfinished_requests():
        spent.append(0.0)
        outputs = engine.step()
        running.append(len(scheduler.running))
        used.append((pool.num_gpu_blocks - 1 - pool.get_num_free_blocks(), len(scheduler.running)))
        for output in outputs:
            first.setdefault(output.request_id, time.perf_counter() - start)
    seconds = time.perf_counter() - start
    most = max(running)
    full = [cost for cost, at_once in zip(spent, running, strict=True) if at_once >= 0.9 * most]
    groups = scheduler.kv_cache_config.kv_cache_groups
    block = groups[0].kv_cache_spec.page_size_bytes * len(groups[0].layer_names)
    return {
        "requests at once": most,
        "steps": len(running),
        "seconds": seconds,
        "tokens a second": count * new / seconds,
        "seconds to first token": statistics.mean(first.values()),
        "KV bytes a request": statistics.median(blocks * block / at_once for blocks, at_once in used if at_once),
        "scheduler CPU ms a step": 1000 * statistics.median(full),
    }


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
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="JSON file for all measurements")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(**json.loads(arguments.one))))
        return
    options = {key: value for key, value in vars(arguments).items() if key not in ("output", "rounds", "one", "shape")}
    options["budget"] = options["budget"] or options["prompt"] // 6
    sizes = SHAPES[arguments.shape]
    row = 2 * 64 * (4 if arguments.dtype == "float32" else 2) * KV_HEADS[arguments.shape] * sizes["num_hidden_layers"]
    blocks = -(-(options["prompt"] + options["new"]) // options["block_size"])
    options["memory"] = options["memory"] or int(5.2 * blocks * options["block_size"] * row)
    results: dict[str, list[dict[str, float]]] = {"stock": [], "sparsemm": []}
    with tempfile.TemporaryDirectory() as folder:
        build(arguments.shape, Path(folder))
        for _ in range(arguments.rounds):
            for kind in results:
                one = json.dumps({"folder": folder, "kind": kind, "options": options})
                command = [sys.executable, "-m", "benchmarks.vllm", "--one", one]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                results[kind].append(json.loads(done.stdout.splitlines()[-1]))
                print(kind, results[kind][-1], file=sys.stderr)
    if arguments.output:
        arguments.output.write_text(json.dumps({"options": options, "results": results}, indent=1) + "\n")
    print(f"{'':24}{'stock':>12}{'sparsemm':>12}{'ratio':>8}")
    for name in results["stock"][0]:
        a, b = (statistics.median(run[name] for run in results[kind]) for kind in results)
        print(f"{name:24}{a:12.4g}{b:12.4g}{b / a if a else float('nan'):8.2f}")


if __name__ == "__main__":
    main()
