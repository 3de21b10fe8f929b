"""`sparsemm bench`: time things against others and against the limit."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from sparsemm.commands import Commands
from sparsemm.errors import SparseMMError

SIZES = {"prompts": "how many (4)", "prompt": "tokens of the longest one (2048)", "answer": "tokens of each (64)"}


def add(commands: Commands) -> None:
    """`bench NAME` and what it is measured with."""
    bench = commands.add_parser(
        "bench",
        help="time the cache's operations against others and against a copy",
        epilog="example: sparsemm bench decode --shape small",
    )
    add_options(bench, "decode, step, backends or chase")
    bench.add_argument("--checkpoint", type=Path, help="of `chase`: runs it without --shape (the small Qwen2-VL)")
    for name, what in SIZES.items():
        bench.add_argument(f"--{name}", type=int, help=f"of `chase --shape`: {what}")
    bench.add_argument("--keep", action="store_true", help="of `backends`: decode with the fastest from now on")
    bench.set_defaults(run=run_bench)


def add_options(parser: argparse.ArgumentParser, names: str) -> None:
    """What every bench is measured with; `names` says which there are."""
    parser.add_argument("name", help=names)
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object")
    parser.add_argument("--shape", help="small, vicuna-7b, mistral-7b or qwen2-vl-7b")
    parser.add_argument("--dtype", help="float32, float16 or bfloat16")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="cuda where there is one")
    parser.add_argument("--repeats", type=int, help="timed turns (9)")


def run_bench(given: argparse.Namespace) -> None:
    """Run one benchmark and print its ratios, or all of it as JSON."""
    if given.keep and given.name != "backends":
        raise SparseMMError(f"`bench {given.name}` has no --keep", hint="`bench backends` has")
    if given.checkpoint and (given.name != "chase" or given.shape):
        hint = "`bench chase` has, without --shape"
        raise SparseMMError(f"`bench {given.name}`{' --shape' * bool(given.shape)} has no --checkpoint", hint=hint)
    asked = {name: value for name in SIZES if (value := getattr(given, name)) is not None}
    turns = {} if given.repeats is None else {"repeats": given.repeats}
    if given.name == "chase":
        from sparsemm.profiling import chase, samples

        checkpoint = given.checkpoint or given.root / chase.CHECKPOINT
        sizes = samples.Sizes(**asked) if asked else None
        result = chase.run(given.shape, given.dtype, given.device, checkpoint=checkpoint, sizes=sizes, **turns)
    elif asked:
        raise SparseMMError(f"`bench {given.name}` has no --{next(iter(asked))}", hint="`bench chase --shape` has")
    else:
        from sparsemm.profiling.bench import run

        result = run(given.name, given.shape, given.dtype, given.device, **turns)
    if given.keep:
        result["kept"] = _keep(result["rows"], given.device)
    show(result, given.json)
    if given.keep and not given.json:
        print(f"  written to {result['kept']}")


def show(result: dict[str, Any], as_json: bool) -> None:
    """Prints what a bench returned: its ratios, or everything as one JSON object."""
    if as_json:
        print(json.dumps(result, indent=2))
        return
    what = (result.get("shape") or result.get("model"), result["dtype"], result["device"])
    print(f"{result['bench']}: {', '.join(filter(None, what))}")
    for name, value in result["ratios"].items():
        print(f"  {name}  {value}")
    for row in result["rows"]:
        if "left_out" in row:
            print(f"  {row['variant']} is left out: {row['left_out']}")
        if "backend" in row:
            print(f"  batch {row['batch']}, {row['budget']} rows a head  {row['backend']}")


def _keep(rows: list[dict[str, Any]], device: str | None) -> str:
    from sparsemm.ops import fastest
    from sparsemm.profiling import clock

    return str(fastest.keep(clock.device_of(device), rows))
