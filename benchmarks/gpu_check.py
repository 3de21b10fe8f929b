"""Checks and measures a GPU in ten minutes: `python -m benchmarks.gpu_check [folder [part ...]]`.

It builds the CUDA library, compares every operation with its reference implementation, replays a CUDA graph, runs the
benches at the shapes of three 7B models, and runs the chase and the profile stage at one of them. Every part is a
process of its own with a time limit, so a part that crashes or hangs does not affect the others. The results are in
gpu.json in the folder; naming parts replaces only their results.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.__main__ import BENCHES
from benchmarks.operations import check
from sparsemm.errors import CacheError
from sparsemm.files import write_json
from sparsemm.ops import OPERATIONS
from sparsemm.ops.append import append
from sparsemm.ops.build import build_cuda
from sparsemm.ops.library import raise_faults
from sparsemm.ops.ragged_decode import ragged_decode, reference, usable
from sparsemm.params import load_params
from sparsemm.profiling import bench, clock
from sparsemm.profiling.bench import chase
from sparsemm.profiling.stage import run_shape

LIMIT = 570  # seconds for all parts
MODELS = ("vicuna-7b", "mistral-7b", "qwen2-vl-7b")


def _build() -> Iterator[dict[str, Any]]:
    began = time.monotonic()
    path = build_cuda()
    device, versions = clock.machine(torch.device("cuda"))
    capability = ".".join(map(str, torch.cuda.get_device_capability()))
    yield {"library": path.name, "seconds": round(time.monotonic() - began, 1), "device": device} | {
        "versions": versions,
        "capability": capability,
    }


def _agreement() -> Iterator[dict[str, Any]]:
    device = torch.device("cuda")
    half = torch.zeros(1, 1, 8, dtype=torch.float16, device=device)
    others = [f"decode/{name}" for name in usable(half, half[0], half[0]) if name in ("varlen", "flash")]
    for op in (*OPERATIONS, *others):
        yield check(op, device, seconds=15, rounds=400 if op in OPERATIONS else 60)


def _graph() -> Iterator[dict[str, Any]]:
    """Captures append and decode once and replays them, with lengths that change on the device."""
    device = torch.device("cuda")
    torch.manual_seed(0)
    heads, group, dim = 8, 4, 128
    starts = torch.arange(heads, dtype=torch.int64, device=device) * 700
    keys, values = (torch.randn(heads * 700, dim, dtype=torch.float32, device=device).bfloat16() for _ in range(2))
    lengths = torch.randint(1, 600, (heads,), dtype=torch.int64, device=device)
    query = torch.randn(1, heads * group, dim, dtype=torch.float32, device=device).bfloat16()
    new = torch.randn(heads, dim, dtype=torch.float32, device=device)
    new = new.bfloat16()

    def step() -> torch.Tensor:
        append(keys, values, new, new, starts, lengths)
        lengths.add_(1)
        return ragged_decode(query, keys, values, starts, lengths, 0.1)

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = step()
    worst = 0.0
    for _ in range(50):
        new.normal_()
        query.normal_()
        graph.replay()
        expected = reference(query, keys, values, starts, lengths, 0.1)
        worst = max(worst, float((output.float() - expected.float()).abs().max()))
    torch.cuda.synchronize()
    yield {"replays": 50, "worst_difference": worst, "right": worst < 0.05}
    lengths.fill_(700)
    append(keys, values, new, new, starts, lengths)
    torch.cuda.synchronize()
    try:
        raise_faults()
        yield {"fault": "an append without room was not reported"}
    except CacheError as error:
        yield {"fault_reported": str(error)}


def _operations(shape: str) -> Iterator[dict[str, Any]]:
    for name in ("decode", "append", "compact", "observe", "backends"):
        yield bench.run(name, shape, device="cuda", benches=bench.BENCHES | BENCHES)


def _model(shape: str) -> Iterator[dict[str, Any]]:
    for name in ("memory", "step", "graph"):
        yield bench.run(name, shape, device="cuda", benches=bench.BENCHES | BENCHES)


def _chase(shape: str) -> Iterator[dict[str, Any]]:
    yield chase.run(shape, device="cuda", repeats=3)


def _profile(shape: str) -> Iterator[dict[str, Any]]:
    """Runs the profile stage at the paper's budget and two of its lengths."""
    params = load_params()
    paper = {"budget": 256, "lengths": (2048, 32768), "new_tokens": 32, "repetitions": 1}
    profile = params.profile.model_copy(update=paper)
    allocate = params.allocate.model_copy(update={"window": 32, "budgets": (256,)})
    with tempfile.TemporaryDirectory() as folder:
        run_shape(params.model_copy(update={"profile": profile, "allocate": allocate}), shape, Path(folder))
        path = Path(folder) / "artifacts" / "profile" / "shapes" / f"{shape}.csv"
        with open(path, newline="", encoding="utf-8") as handle:
            yield from csv.DictReader(handle)


PARTS: dict[str, tuple[int, Callable[[], Iterator[dict[str, Any]]]]] = {  # name: time limit in seconds, function
    "build": (150, _build),
    "agreement": (150, _agreement),
    "graph": (60, _graph),
    **{f"operations-{shape}": (80, lambda shape=shape: _operations(shape)) for shape in MODELS},  # type: ignore[misc]
    **{f"model-{shape}": (150, lambda shape=shape: _model(shape)) for shape in MODELS},  # type: ignore[misc]
    "chase": (120, lambda: _chase("mistral-7b")),
    "profile": (120, lambda: _profile("vicuna-7b")),
}


def run(folder: Path, limit: float = LIMIT, parts: list[str] | None = None) -> dict[str, Any]:
    """Runs the parts, each in a process, and writes gpu.json after each: part -> {seconds, results, error}."""
    began = time.monotonic()
    earlier = folder / "gpu.json"
    report: dict[str, Any] = json.loads(earlier.read_text(encoding="utf-8")) if parts and earlier.is_file() else {}
    for part in parts or list(PARTS):
        left = limit - (time.monotonic() - began)
        started = time.monotonic()
        entry: dict[str, Any] = {"results": []}
        if left < 5:
            entry["error"] = "no time left"
        else:
            command = [sys.executable, "-m", "benchmarks.gpu_check", "--part", part]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=min(left, PARTS[part][0]))
                printed, complaint = done.stdout, done.stderr if done.returncode else ""
            except subprocess.TimeoutExpired as error:
                printed = (error.stdout or b"").decode() if not isinstance(error.stdout, str) else error.stdout
                complaint = f"stopped after {PARTS[part][0]} s"
            entry["results"] = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
            if complaint:
                entry["error"] = complaint[-4000:]
        entry["seconds"] = round(time.monotonic() - started, 1)
        report[part] = entry
        write_json(folder / "gpu.json", report)
        failed = "failed" if "error" in entry else "done"
        print(f"{part}: {failed}, {len(entry['results'])} results, {entry['seconds']} s", flush=True)
    return report


def main() -> int:
    """Runs all parts, or prints the results of one part line by line."""
    if sys.argv[1:2] == ["--part"]:
        for result in PARTS[sys.argv[2]][1]():
            print(json.dumps(result), flush=True)
        return 0
    if not torch.cuda.is_available():
        print("sparsemm: torch sees no CUDA device", file=sys.stderr)
        return 1
    folder, *parts = sys.argv[1:] or ["artifacts/benchmarks"]
    if unknown := set(parts) - set(PARTS):
        names = ", ".join(PARTS)
        print(f"sparsemm: unknown parts {', '.join(sorted(unknown))}; use some of {names}", file=sys.stderr)
        return 1
    report = run(Path(folder), parts=parts)
    agreement = report.get("agreement", {"results": []})
    wrong = [result for result in agreement["results"] if result.get("failed")]
    for result in wrong:
        print(f"{result['op']}: {result['failed']} of {result['rounds']} wrong, {result['failures'][0]}")
    return 1 if wrong or any("error" in entry for entry in report.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
