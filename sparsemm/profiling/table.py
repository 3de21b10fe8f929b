"""The table of the profile stage: artifacts/profile/<key>.csv, and what machine it is of in <key>.json.

prefill_ms                the prompt, until the first token's logits; medians over repetitions
compression_ms, _share    compressing the prompt in all layers, and its share of the prefill
decode_ms_per_token       one step; decode_ratio_to_full: over that with transformers' own full cache, in the same run
tokens_per_second         of all rows of the batch together, prompt left out
roofline_ms               bytes of weights and kept keys and values over the bandwidth of a copy in the same run
peak_bytes                most bytes that tensors held at once, weights included
kept_bytes, slab_bytes    keys and values in use after the last token, and allocated for them
full_bytes                what the full cache holds then
"""

from __future__ import annotations

import csv
import platform
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers

from sparsemm.files import atomic_path, write_json
from sparsemm.policies import policy_class
from sparsemm.profiling.measure import BASELINE, Case, Measured

COLUMNS = (
    "model method budget prompt_length batch_size prefill_ms compression_ms compression_share decode_ms_per_token "
    "decode_ratio_to_full tokens_per_second roofline_ms peak_bytes kept_bytes slab_bytes full_bytes"
).split()
METRICS = ("decode_ratio_to_full", "compression_share")  # shown by `dvc metrics`


def write(folder: Path, found: Measured) -> None:
    """Write <key>.csv and <key>.json into a folder."""
    table = rows(found)
    path = folder / f"{found.key}.csv"
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    metrics: dict[str, Any] = _machine(found)
    for name in METRICS:
        for row in table:
            per_method = metrics.setdefault(name, {}).setdefault(row["method"], {})
            per_method[str(row["prompt_length"])] = row[name]
    write_json(folder / f"{found.key}.json", metrics)


def rows(found: Measured) -> list[dict[str, Any]]:
    """One row for every length and method, by `COLUMNS`."""
    return [_row(found, *place) for place in found.cases]


def _row(found: Measured, length: int, method: str) -> dict[str, Any]:
    case, full = found.cases[length, method], found.cases[length, BASELINE]
    step = _step(case)
    return {
        "model": found.key,
        "method": method,
        "budget": found.budget if method != BASELINE and policy_class(method).compresses else "",
        "prompt_length": length,
        "batch_size": found.batch_size,
        "prefill_ms": round(1e3 * median(t.prefill for t in case.timings), 4),
        "compression_ms": round(1e3 * median(t.compression for t in case.timings), 4),
        "compression_share": round(median(t.compression / t.prefill for t in case.timings), 4),
        "decode_ms_per_token": round(1e3 * step, 4),
        "decode_ratio_to_full": round(step / _step(full), 4),
        "tokens_per_second": round(found.batch_size / step, 2),
        "roofline_ms": round(1e3 * (found.weights + case.kept) / found.bandwidth, 4),
        "peak_bytes": case.peak,
        "kept_bytes": case.kept,
        "slab_bytes": case.slab,
        "full_bytes": full.kept,
    }


def _step(case: Case) -> float:
    return median(step for timing in case.timings for step in timing.decode)


def _machine(found: Measured) -> dict[str, Any]:
    cuda = found.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(found.device) if cuda else platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "weight_bytes": found.weights,
        "copy_bytes_per_second": round(found.bandwidth),
    }
