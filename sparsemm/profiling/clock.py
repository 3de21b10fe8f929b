"""Times several functions in turns, so that other load on the machine affects all of them alike."""

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

TURN = 2e-3  # least seconds of one turn; a fast function is repeated
# Bytes of the copy that measures bandwidth, more than the processor caches hold.
COPIED = {"cpu": 256 << 20, "cuda": 1 << 30}
WAITING = ("twin",)  # functions that wait for the device, and so cannot be captured in a graph
Functions = dict[str, Callable[[], Any]]


def device_of(name: str | None) -> torch.device:
    """Returns the device of a benchmark: `name` (cpu or cuda), else cuda if there is one.

    Raises SparseMMError if it is cuda and torch finds none.
    """
    has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        raise SparseMMError("torch sees no CUDA device", hint="--device cpu, or `sparsemm doctor` for what is missing")
    return torch.device(name or ("cuda" if has_cuda else "cpu"))


def check_options(shape: str | None, shapes: Iterable[str], dtype: str, repeats: int) -> torch.dtype:
    """Checks the options of a benchmark, and returns the dtype by its name.

    Raises SparseMMError if there is no such shape or dtype, or there are fewer than 2 repeats.
    """
    dtypes = {str(one).removeprefix("torch."): one for one in DTYPES}
    for what, name, known in (("shape", shape, [*shapes]), ("dtype", dtype, [*dtypes])):
        if name is not None and name not in known:
            raise SparseMMError(f"no {what} is called {name!r}", hint=f"one of {', '.join(known)}")
    if repeats < 2:
        raise SparseMMError(f"{repeats} turns have no spread", hint="at least 2")
    return dtypes[dtype]


def now(device: torch.device) -> float:
    """Returns the time in seconds after the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Returns the wall-clock seconds of one call."""
    began = now(device)
    call()
    return now(device) - began


def alternating(functions: Functions, repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Times the functions in turns; returns for each the seconds of one call, `repeats` times.

    Every function is first called for warm-up, and to find how many calls make a turn. On a CUDA device a turn is
    captured in a CUDA graph if possible, so that the device is timed and not the host.
    """
    turns = {name: _turn(function, device, name not in WAITING) for name, function in functions.items()}
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, (run, calls) in turns.items():
            times[name].append(seconds(run, device) / calls)
    return times


def _turn(function: Callable[[], Any], device: torch.device, capture: bool) -> tuple[Callable[[], Any], int]:
    function()
    fastest = min(seconds(function, device) for _ in range(3))  # a single call is unreliable on a busy machine
    calls = max(1, min(256, math.ceil(TURN / max(fastest, 1e-9))))

    def run() -> None:
        for _ in range(calls):
            function()

    if device.type != "cuda" or not capture:
        return run, calls
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
    except RuntimeError:  # for example a backend of another package that waits for the device
        torch.cuda.synchronize(device)
        return run, calls
    return graph.replay, calls


def copies(device: torch.device) -> tuple[Callable[[], Any], int]:
    """Returns a function that copies a tensor, and the bytes that it reads and writes."""
    size = COPIED[device.type]
    source = torch.ones(size // 4, dtype=torch.float32, device=device)
    target = torch.zeros_like(source)
    return lambda: target.copy_(source), 2 * size


def summary(times: dict[str, list[float]], moved: dict[str, int]) -> dict[str, Any]:
    """Returns quartiles of the seconds, and if the bytes are known, bytes per second and the share of the copy's rate.

    Args:
        times: from `alternating`; "copy" is the copy.
        moved: bytes that a call has to read and write, also those of the copy.
    """
    median = {name: statistics.median(times_of_call) for name, times_of_call in times.items()}
    bandwidth = moved["copy"] / median["copy"] if "copy" in moved else None
    result = {}
    for name, times_of_call in times.items():
        single = len(times_of_call) == 1
        quartiles = times_of_call * 3 if single else statistics.quantiles(times_of_call, method="inclusive")
        entry: dict[str, Any] = {"seconds": [round(q, 9) for q in quartiles]}
        if name in moved:
            rate = moved[name] / median[name]
            entry |= {"bytes": moved[name], "bytes_per_second": round(rate)}
            entry |= {"copy_share": round(rate / bandwidth, 4)} if bandwidth else {}
        result[name] = entry
    return result


def ratio(times: dict[str, list[float]], above: str, below: str) -> float:
    """Returns the ratio of two median times."""
    return round(statistics.median(times[above]) / statistics.median(times[below]), 3)


def heading(bench: str, device: torch.device, **about: Any) -> dict[str, Any]:
    """Returns what every benchmark prints about itself; call it before the benchmark adds to the load."""
    description, versions = machine(device)
    load, date = round(os.getloadavg()[0], 1), time.strftime("%Y-%m-%d")
    return {"bench": bench, **about, "device": description, "load": load, "date": date, "versions": versions}


def machine(device: torch.device) -> tuple[str, dict[str, Any]]:
    """Returns a description of the device, and the versions of the software."""
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "library": cuda_available() if device.type == "cuda" else available(),
    }
    if device.type == "cuda":
        return torch.cuda.get_device_name(device), versions | {"cuda": torch.version.cuda}
    return f"{processor()}, {torch.get_num_threads()} threads", versions
