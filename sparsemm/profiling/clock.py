"""Time several functions in turns, so that a busy machine is busy for all of them."""

from __future__ import annotations

import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
import transformers

from sparsemm.errors import SparseMMError
from sparsemm.ops.fastest import processor
from sparsemm.ops.library import DTYPES, available, cuda_available

TURN = 2e-3  # seconds of one turn of a fast function: it is repeated so often
COPIED = {"cpu": 256 << 20, "cuda": 1 << 30}  # bytes of the copy that measures bandwidth: more than any cache holds
WAITING = ("twin",)  # functions that ask the device for a number, and so cannot be captured in a graph
Functions = dict[str, Callable[[], Any]]


def device_of(name: str | None) -> torch.device:
    """The device a bench runs on: what `name` (cpu or cuda) says, else cuda where there is one.

    Raises:
        SparseMMError: if it is cuda and torch sees none.
    """
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise SparseMMError("torch sees no CUDA device", hint="--device cpu, or `sparsemm doctor` for what is missing")
    return torch.device(name or ("cuda" if there else "cpu"))


def check_options(shape: str | None, shapes: Iterable[str], dtype: str, repeats: int) -> torch.dtype:
    """Returns the dtype of a name.

    Raises:
        SparseMMError: if there is no such shape or dtype, or there are fewer than 2 repeats.
    """
    dtypes = {str(one).removeprefix("torch."): one for one in DTYPES}
    for what, name, known in (("shape", shape, [*shapes]), ("dtype", dtype, [*dtypes])):
        if name is not None and name not in known:
            raise SparseMMError(f"no {what} is called {name!r}", hint=f"one of {', '.join(known)}")
    if repeats < 2:
        raise SparseMMError(f"{repeats} turns have no spread", hint="at least 2")
    return dtypes[dtype]


def now(device: torch.device) -> float:
    """Seconds, after all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Returns the wall-clock seconds of one call."""
    began = now(device)
    call()
    return now(device) - began


def alternating(functions: Functions, repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of one call of every function, called in turns; `repeats` numbers each.

    Every function is called before, to warm up and to see how many calls make a turn. On a CUDA device a turn is
    captured in a graph where the function lets itself be captured, so that the device is timed and not the host.
    """
    turns = {name: _turn(function, device, name not in WAITING) for name, function in functions.items()}
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, (run, calls) in turns.items():
            times[name].append(seconds(run, device) / calls)
    return times


def _turn(function: Callable[[], Any], device: torch.device, capture: bool) -> tuple[Callable[[], Any], int]:
    function()
    quickest = math.inf  # of three calls: on a busy machine a single one may be any number
    for _ in range(3):
        quickest = min(quickest, seconds(function, device))
    calls = max(1, min(256, math.ceil(TURN / max(quickest, 1e-9))))

    def run() -> None:
        for _ in range(calls):
            function()

    if device.type != "cuda" or not capture:
        return run, calls
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
    except RuntimeError:  # a backend of others that waits for the device
        torch.cuda.synchronize(device)
        return run, calls
    return graph.replay, calls


def copies(device: torch.device) -> tuple[Callable[[], Any], int]:
    """A function that copies, and the bytes it reads and writes."""
    size = COPIED[device.type]
    source = torch.ones(size // 4, dtype=torch.float32, device=device)
    target = torch.zeros_like(source)
    return lambda: target.copy_(source), 2 * size


def summary(times: dict[str, list[float]], moved: dict[str, int]) -> dict[str, Any]:
    """Quartiles of the seconds, and bytes, bytes per second and share of the copy's where the bytes are known.

    Args:
        times: from `alternating`; "copy" is the copy.
        moved: bytes that a call has to read and write; the copy's too.
    """
    median = {name: statistics.median(spent) for name, spent in times.items()}
    bandwidth = moved["copy"] / median["copy"] if "copy" in moved else None
    result = {}
    for name, spent in times.items():
        quartiles = statistics.quantiles(spent, method="inclusive") if len(spent) > 1 else spent * 3
        entry: dict[str, Any] = {"seconds": [round(q, 9) for q in quartiles]}
        if name in moved:
            rate = moved[name] / median[name]
            entry |= {"bytes": moved[name], "bytes_per_second": round(rate)}
            entry |= {"copy_share": round(rate / bandwidth, 4)} if bandwidth else {}
        result[name] = entry
    return result


def ratio(times: dict[str, list[float]], above: str, below: str) -> float:
    """Median time of one over that of the other."""
    return round(statistics.median(times[above]) / statistics.median(times[below]), 3)


def heading(bench: str, device: torch.device, **about: Any) -> dict[str, Any]:
    """What every bench prints of itself; ask before it runs and adds to the load."""
    words, versions = machine(device)
    load, date = round(os.getloadavg()[0], 1), time.strftime("%Y-%m-%d")
    return {"bench": bench, **about, "device": words, "load": load, "date": date, "versions": versions}


def machine(device: torch.device) -> tuple[str, dict[str, Any]]:
    """The device in words, and the versions of what ran."""
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "library": cuda_available() if device.type == "cuda" else available(),
    }
    if device.type == "cuda":
        return torch.cuda.get_device_name(device), versions | {"cuda": torch.version.cuda}
    return f"{processor()}, {torch.get_num_threads()} threads", versions
