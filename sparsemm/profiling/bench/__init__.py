"""`sparsemm bench NAME`: times parts of this package against alternatives, one file per benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from sparsemm.errors import SparseMMError
from sparsemm.profiling import clock
from sparsemm.profiling.bench import backends, decode, step
from sparsemm.profiling.bench.setting import Bench, Setting
from sparsemm.profiling.shapes import SHAPES, check_room

BUDGET, WINDOW = 256, 32
LENGTHS = (1024, 8192, 32768)
BENCHES = {"decode": Bench(decode.run), "step": Bench(step.run, whole_model=True), "backends": Bench(backends.run)}
REPEATS = 9


def run(
    name: str,
    shape: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    repeats: int | None = None,
    benches: Mapping[str, Bench] = BENCHES,
) -> dict[str, Any]:
    """Runs one benchmark; returns {bench, shape, dtype, device, load, date, versions, rows, ratios}.

    Args:
        name: one of `benches`.
        shape: one of `SHAPES`; by default mistral-7b, but "small" for a whole model on a CPU. In the result it is None
            if the benchmark has its own shapes; the same holds for `dtype`.
        dtype: float32, float16 or bfloat16; by default bfloat16 on a CUDA device, else float32.
        device: cpu or cuda; by default cuda if there is one.
        repeats: timed turns, at least 2; by default `REPEATS`.
        benches: the benchmarks to choose from.

    Raises:
        SparseMMError: if an option is unknown or not used by the benchmark, or there is no such device.
        ModelError: if the device has too little memory for a whole model.
    """
    where = clock.device_of(device)
    if name not in benches:
        names = [*benches, "chase"] if benches is BENCHES else [*benches]  # it has its own options
        raise SparseMMError(f"no bench is called {name!r}", hint=f"one of {', '.join(names)}")
    bench = benches[name]
    for option, value in (("shape", shape), ("dtype", dtype), ("repeats", repeats)):
        if option in bench.unused and value is not None:
            raise SparseMMError(f"`bench {name}` has no --{option}", hint="leave it out")
    shape = shape or ("small" if where.type == "cpu" and bench.whole_model else "mistral-7b")
    dtype = dtype or ("bfloat16" if where.type == "cuda" else "float32")
    repeats = REPEATS if repeats is None else repeats
    numbers = clock.check_options(shape, SHAPES, dtype, repeats)
    setting = Setting(SHAPES[shape], numbers, where, repeats, LENGTHS, BUDGET, WINDOW)
    if bench.whole_model:
        beside = 2 * clock.COPIED[where.type] + bench.beside(setting)
        check_room(shape, bench.longest(setting), 1, setting.dtype, where, beside)
    used = {key: None if key in bench.unused else value for key, value in (("shape", shape), ("dtype", dtype))}
    heading = clock.heading(name, where, **used)
    with torch.inference_mode():
        rows, ratios = bench.run(setting)
    return heading | {"rows": rows, "ratios": ratios}
