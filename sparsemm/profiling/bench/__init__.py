"""`sparsemm bench NAME`: times things against others and against the limit, one file per bench."""

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
    """One bench: {bench, shape, dtype, device, load, date, versions, rows, ratios}.

    Args:
        name: of `benches`.
        shape: of `SHAPES`; mistral-7b, but "small" for a whole model on a CPU. None in what is returned
            where a bench has shapes of its own; so are dtypes.
        dtype: float32, float16 or bfloat16; on a CUDA device bfloat16, elsewhere float32.
        device: cpu or cuda; cuda where there is one.
        repeats: timed turns, at least 2; `REPEATS` where none are given.
        benches: what there is to choose from.

    Raises:
        SparseMMError: if one of them is unknown, is nothing the bench uses, or there is no such device.
        ModelError: if the device has too little memory for a whole model.
    """
    where = clock.device_of(device)
    if name not in benches:
        names = [*benches, "chase"] if benches is BENCHES else [*benches]  # that one has a file and options of its own
        raise SparseMMError(f"no bench is called {name!r}", hint=f"one of {', '.join(names)}")
    bench = benches[name]
    for what, asked in (("shape", shape), ("dtype", dtype), ("repeats", repeats)):
        if what in bench.unused and asked is not None:
            raise SparseMMError(f"`bench {name}` has no --{what}", hint="leave it out")
    shape = shape or ("small" if where.type == "cpu" and bench.whole_model else "mistral-7b")
    dtype = dtype or ("bfloat16" if where.type == "cuda" else "float32")
    repeats = REPEATS if repeats is None else repeats
    numbers = clock.check_options(shape, SHAPES, dtype, repeats)
    setting = Setting(SHAPES[shape], numbers, where, repeats, LENGTHS, BUDGET, WINDOW)
    if bench.whole_model:
        beside = 2 * clock.COPIED[where.type] + bench.beside(setting)
        check_room(shape, bench.longest(setting), 1, setting.dtype, where, beside)
    used = {what: None if what in bench.unused else value for what, value in (("shape", shape), ("dtype", dtype))}
    head = clock.heading(name, where, **used)
    with torch.inference_mode():
        rows, ratios = bench.run(setting)
    return head | {"rows": rows, "ratios": ratios}
