"""`sparsemm bench NAME`: times things against others and against the limit, one file per bench."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import torch

from sparsemm.cache import library
from sparsemm.errors import SparseMMError
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
    step,
)
from sparsemm.profiling.bench.setting import Found, Setting
from sparsemm.profiling.shapes import SHAPES

BUDGET, WINDOW = 256, 32
LENGTHS = (1024, 8192, 32768)
BENCHES: dict[str, Callable[[Setting], Found]] = {
    "append": append.run,
    "compact": compact.run,
    "observe": observe.run,
    "attention": attention.run,
    "decode": decode.run,
    "step": step.run,
    "graph": graph.run,
    "memory": memory.run,
    "agreement": agreement.run,
    "backends": backends.run,
}
WHOLE_MODEL = ("step", "graph", "memory")


def run(
    name: str, shape: str | None = None, dtype: str | None = None, device: str | None = None, repeats: int = 9
) -> dict[str, Any]:
    """One bench: {bench, shape, dtype, device, load, date, versions, rows, ratios}.

    Args:
        name: of `BENCHES`.
        shape: of `SHAPES`; mistral-7b, but "small" for a whole model on a CPU.
        dtype: float32, float16 or bfloat16; on a CUDA device bfloat16, elsewhere float32.
        device: cpu or cuda; cuda where there is one.
        repeats: timed turns, at least 2.

    Raises:
        SparseMMError: if one of them is unknown.
    """
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    shape = shape or ("small" if where.type == "cpu" and name in WHOLE_MODEL else "mistral-7b")
    dtype = dtype or ("bfloat16" if where.type == "cuda" else "float32")
    dtypes = {str(t).removeprefix("torch."): t for t in library.DTYPES}
    names = [*BENCHES, "chase"]  # which is in a file of its own, with options of its own
    for what, given, known in (("bench", name, names), ("shape", shape, [*SHAPES]), ("dtype", dtype, [*dtypes])):
        if given not in known:
            raise SparseMMError(f"no {what} is called {given!r}", hint=f"one of {', '.join(known)}")
    if repeats < 2:
        raise SparseMMError(f"{repeats} turns have no spread", hint="at least 2")
    words, versions = clock.machine(where)
    head: dict[str, Any] = {"bench": name, "shape": shape, "dtype": dtype, "device": words, "versions": versions}
    head |= {"load": round(os.getloadavg()[0], 1), "date": time.strftime("%Y-%m-%d")}  # before this adds to it
    with torch.inference_mode():
        rows, ratios = BENCHES[name](Setting(SHAPES[shape], dtypes[dtype], where, repeats, LENGTHS, BUDGET, WINDOW))
    return head | {"rows": rows, "ratios": ratios}
