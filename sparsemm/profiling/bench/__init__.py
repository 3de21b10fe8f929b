"""`sparsemm bench NAME`: times things against others and against the limit, one file per bench."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import torch

from sparsemm.errors import SparseMMError
from sparsemm.ops import library
from sparsemm.profiling import clock
from sparsemm.profiling.bench import (
    agreement,
    append,
    attention,
    backends,
    compact,
    decode,
    graph,
    memory,
    observe,
    skew,
    step,
)
from sparsemm.profiling.bench.setting import Found, Setting
from sparsemm.profiling.shapes import SHAPES, check_room

BUDGET, WINDOW = 256, 32
LENGTHS = (1024, 8192, 32768)
BENCHES: dict[str, Callable[[Setting], Found]] = {
    "append": append.run,
    "compact": compact.run,
    "observe": observe.run,
    "attention": attention.run,
    "decode": decode.run,
    "skew": skew.run,
    "step": step.run,
    "graph": graph.run,
    "memory": memory.run,
    "agreement": agreement.run,
    "backends": backends.run,
}
WHOLE_MODEL = ("step", "graph", "memory")
UNUSED = {"agreement": ("shape", "dtype", "repeats"), "memory": ("repeats",)}  # options that a bench has not
REPEATS = 9


def run(
    name: str,
    shape: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    repeats: int | None = None,
) -> dict[str, Any]:
    """One bench: {bench, shape, dtype, device, load, date, versions, rows, ratios}.

    Args:
        name: of `BENCHES`.
        shape: of `SHAPES`; mistral-7b, but "small" for a whole model on a CPU. None in what is returned for
            "agreement", which has checkpoints and shapes of its own, and dtypes too.
        dtype: float32, float16 or bfloat16; on a CUDA device bfloat16, elsewhere float32.
        device: cpu or cuda; cuda where there is one.
        repeats: timed turns, at least 2; `REPEATS` where none are given.

    Raises:
        SparseMMError: if one of them is unknown, is nothing the bench uses, or there is no such device.
        ModelError: if the device has too little memory for a whole model.
    """
    where = clock.device_of(device)
    unused = UNUSED.get(name, ())
    for what, asked in (("shape", shape), ("dtype", dtype), ("repeats", repeats)):
        if what in unused and asked is not None:
            raise SparseMMError(f"`bench {name}` has no --{what}", hint="leave it out")
    shape = shape or ("small" if where.type == "cpu" and name in WHOLE_MODEL else "mistral-7b")
    dtype = dtype or ("bfloat16" if where.type == "cuda" else "float32")
    repeats = REPEATS if repeats is None else repeats
    dtypes = {str(t).removeprefix("torch."): t for t in library.DTYPES}
    names = [*BENCHES, "chase"]  # which is in a file of its own, with options of its own
    for what, given, known in (("bench", name, names), ("shape", shape, [*SHAPES]), ("dtype", dtype, [*dtypes])):
        if given not in known:
            raise SparseMMError(f"no {what} is called {given!r}", hint=f"one of {', '.join(known)}")
    if repeats < 2:
        raise SparseMMError(f"{repeats} turns have no spread", hint="at least 2")
    setting = Setting(SHAPES[shape], dtypes[dtype], where, repeats, LENGTHS, BUDGET, WINDOW)
    if name in WHOLE_MODEL:
        _check_room(name, shape, setting)
    words, versions = clock.machine(where)
    used = {what: None if what in unused else value for what, value in (("shape", shape), ("dtype", dtype))}
    head: dict[str, Any] = {"bench": name} | used | {"device": words, "versions": versions}
    head |= {"load": round(os.getloadavg()[0], 1), "date": time.strftime("%Y-%m-%d")}  # before this adds to it
    with torch.inference_mode():
        rows, ratios = BENCHES[name](setting)
    return head | {"rows": rows, "ratios": ratios}


def _check_room(name: str, shape: str, setting: Setting) -> None:
    """Refuse a whole model that would not fit, before anything is made of it."""
    length, beside = max(setting.prompts), 2 * clock.COPIED[setting.device.type]
    if name == "graph":  # more rows have caches only: no model sees their prompt
        length = setting.lengths[-1]
        beside += (graph.most_rows(setting) - 1) * length * setting.shape.cache() * setting.dtype.itemsize
    check_room(shape, length, 1, setting.dtype, setting.device, beside)
