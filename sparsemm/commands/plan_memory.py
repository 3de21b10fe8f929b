"""`sparsemm plan-memory`: computes how many requests vLLM holds at once, with the full and the compressed cache."""

from __future__ import annotations

import argparse

from sparsemm.commands import Commands, command
from sparsemm.errors import ModelError

DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


def add(commands: Commands) -> None:
    """Adds `plan-memory` and its options."""
    text = "how many requests fit into vLLM's KV cache, full and compressed"
    example = "--model Qwen/Qwen2-VL-7B-Instruct --method snapkv --budget 256 --context 2048 --memory 40G"
    plan = command(commands, "plan-memory", run, text, f"plan-memory {example}")
    plan.add_argument("--model", required=True, help="checkpoint: a folder or a hub id")
    plan.add_argument("--budget", type=int, required=True, help="mean slots per KV head")
    plan.add_argument("--context", type=int, required=True, help="tokens of a prompt, images included")
    plan.add_argument("--memory", required=True, help="memory for the KV cache without the weights, such as 40G")
    plan.add_argument("--new", type=int, default=256, help="tokens of an answer (256)")
    plan.add_argument("--method", default="sparsemm", help="method, as in additional_config (sparsemm)")
    plan.add_argument("--scores", help="score table for method sparsemm: a path or a registry address")
    plan.add_argument("--window", type=int, default=32, help="newest prompt tokens that rate the others (32)")
    plan.add_argument("--block-size", type=int, default=16, help="rows of a block (16)")
    plan.add_argument("--dtype", choices=sorted(DTYPE_BYTES), default="bfloat16", help="dtype of the cache (bfloat16)")


def run(args: argparse.Namespace) -> None:
    """Prints a table with a row for every number of groups of layers."""
    from sparsemm.compat import define_missing_torchvision_operators
    from sparsemm.vllm.memory import fits, parse_bytes

    define_missing_torchvision_operators()
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(args.model, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"config cannot be read: {error}", where=args.model) from error
    method = (args.method, args.budget, args.scores, {"window": args.window})
    sizes = {"block_size": args.block_size, "dtype_bytes": DTYPE_BYTES[args.dtype]}
    rows = fits(config, *method, args.context, args.new, parse_bytes(args.memory), **sizes)
    first = rows[0]
    print(f"full cache: {first.whole} requests at once, {first.bytes_whole / 2**20:.1f} MiB each")
    print(f"{'groups':>6} {'requests at once':>16} {'MiB each':>9} {'times as many':>13}")
    for row in rows:
        ratio = f"{row.compressed / row.whole:.1f}" if row.whole else "-"
        print(f"{row.groups:>6} {row.compressed:>16} {row.bytes_held / 2**20:>9.1f} {ratio:>13}")
