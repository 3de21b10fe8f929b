"""`sparsemm bench`: times the cache's operations against alternatives and against a plain copy."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from sparsemm.commands import Commands, command
from sparsemm.errors import SparseMMError

SIZES = {
    "prompts": "number of prompts (4)",
    "prompt": "tokens of the longest prompt (2048)",
    "answer": "tokens of each answer (64)",
}


def add(commands: Commands) -> None:
    """Adds `bench NAME` and its options."""
    text = "time the cache's operations against alternatives and against a copy"
    bench = command(commands, "bench", run_bench, text, "bench decode --shape small")
    add_options(bench, "decode, step, backends or chase")
    bench.add_argument("--checkpoint", type=Path, help="checkpoint for `chase` without --shape (the small Qwen2-VL)")
    for name, text in SIZES.items():
        bench.add_argument(f"--{name}", type=int, help=f"for `chase --shape`: {text}")
    bench.add_argument("--keep", action="store_true", help="for `backends`: decode with the fastest from now on")


def add_options(parser: argparse.ArgumentParser, names: str) -> None:
    """Adds the options that every bench has; `names` lists the benches."""
    parser.add_argument("name", help=names)
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object")
    parser.add_argument("--shape", help="small, vicuna-7b, mistral-7b or qwen2-vl-7b")
    parser.add_argument("--dtype", help="float32, float16 or bfloat16")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="cuda where there is one")
    parser.add_argument("--repeats", type=int, help="timed turns (9)")


def run_bench(args: argparse.Namespace) -> None:
    """Runs one benchmark and prints its ratios, or everything as JSON."""
    if args.keep and args.name != "backends":
        raise SparseMMError(f"`bench {args.name}` has no --keep", hint="only `bench backends` has it")
    if args.checkpoint and (args.name != "chase" or args.shape):
        hint = "only `bench chase` without --shape has it"
        raise SparseMMError(f"`bench {args.name}`{' --shape' * bool(args.shape)} has no --checkpoint", hint=hint)
    sizes = {name: value for name in SIZES if (value := getattr(args, name)) is not None}
    turns = {} if args.repeats is None else {"repeats": args.repeats}
    if args.name == "chase":
        from sparsemm.profiling.bench import chase, chase_samples

        checkpoint = args.checkpoint or args.root / chase.CHECKPOINT
        prompts = chase_samples.Sizes(**sizes) if sizes else None
        result = chase.run(args.shape, args.dtype, args.device, checkpoint=checkpoint, sizes=prompts, **turns)
    elif sizes:
        hint = "only `bench chase --shape` has it"
        raise SparseMMError(f"`bench {args.name}` has no --{next(iter(sizes))}", hint=hint)
    else:
        from sparsemm.profiling.bench import run

        result = run(args.name, args.shape, args.dtype, args.device, **turns)
    if args.keep:
        from sparsemm.ops import fastest
        from sparsemm.profiling import clock

        result["kept"] = str(fastest.keep(clock.device_of(args.device), result["rows"]))
    show(result, args.json)
    if args.keep and not args.json:
        print(f"  written to {result['kept']}")


def show(result: dict[str, Any], as_json: bool) -> None:
    """Prints the result of a bench: its ratios, or everything as one JSON object."""
    if as_json:
        print(json.dumps(result, indent=2))
        return
    setting = (result.get("shape") or result.get("model"), result["dtype"], result["device"])
    print(f"{result['bench']}: {', '.join(filter(None, setting))}")
    for name, value in result["ratios"].items():
        print(f"  {name}  {value}")
    for row in result["rows"]:
        if "left_out" in row:
            print(f"  {row['variant']} is left out: {row['left_out']}")
        if "backend" in row:
            print(f"  batch {row['batch']}, {row['budget']} rows a head  {row['backend']}")
