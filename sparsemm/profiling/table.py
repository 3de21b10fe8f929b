"""Writes the table of the profile stage, artifacts/profile/<key>.csv, and the machine and metrics to <key>.json.

prefill_ms                the prompt, until the first token's logits; all times are medians over repetitions
compression_ms, _share    compressing the prompt in all layers, and its share of the prefill
decode_ms_per_token       one decode step
decode_ratio_to_full      the same, divided by that of transformers' full cache in the same run
tokens_per_second         decoded tokens of all rows of the batch
roofline_ms               bytes of weights, kept keys and values, divided by the bandwidth of a copy in the same run
peak_bytes                peak bytes of all tensors, weights included
kept_bytes, slab_bytes    keys and values that are used after the last token, and that are allocated
full_bytes                keys and values of the full cache at that time
"""

from __future__ import annotations

import platform
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers

from sparsemm.files import write_csv, write_json
from sparsemm.policies import policy_class
from sparsemm.profiling.measurements import BASELINE, Case, Profile

COLUMNS = (
    "model method budget prompt_length batch_size prefill_ms compression_ms compression_share decode_ms_per_token "
    "decode_ratio_to_full tokens_per_second roofline_ms peak_bytes kept_bytes slab_bytes full_bytes"
).split()
METRICS = ("decode_ratio_to_full", "compression_share")  # shown by `dvc metrics`


def write(folder: Path, profile: Profile) -> None:
    """Writes <key>.csv and <key>.json to a folder."""
    table = rows(profile)
    write_csv(folder / f"{profile.key}.csv", COLUMNS, table)
    metrics: dict[str, Any] = _machine(profile)
    for name in METRICS:
        for row in table:
            per_method = metrics.setdefault(name, {}).setdefault(row["method"], {})
            per_method[str(row["prompt_length"])] = row[name]
    write_json(folder / f"{profile.key}.json", metrics)


def rows(profile: Profile) -> list[dict[str, Any]]:
    """Returns one row with `COLUMNS` for every length and method."""
    return [_row(profile, length, method) for length, method in profile.cases]


def _row(profile: Profile, length: int, method: str) -> dict[str, Any]:
    case, full = profile.cases[length, method], profile.cases[length, BASELINE]
    step = _step(case)
    return {
        "model": profile.key,
        "method": method,
        "budget": profile.budget if method != BASELINE and policy_class(method).compresses else "",
        "prompt_length": length,
        "batch_size": profile.batch_size,
        "prefill_ms": round(1e3 * median(t.prefill for t in case.timings), 4),
        "compression_ms": round(1e3 * median(t.compression for t in case.timings), 4),
        "compression_share": round(median(t.compression / t.prefill for t in case.timings), 4),
        "decode_ms_per_token": round(1e3 * step, 4),
        "decode_ratio_to_full": round(step / _step(full), 4),
        "tokens_per_second": round(profile.batch_size / step, 2),
        "roofline_ms": round(1e3 * (profile.weights + case.kept) / profile.bandwidth, 4),
        "peak_bytes": case.peak,
        "kept_bytes": case.kept,
        "slab_bytes": case.slab,
        "full_bytes": full.kept,
    }


def _step(case: Case) -> float:
    return median(step for timing in case.timings for step in timing.decode)


def _machine(profile: Profile) -> dict[str, Any]:
    cuda = profile.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(profile.device) if cuda else platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "weight_bytes": profile.weights,
        "copy_bytes_per_second": round(profile.bandwidth),
    }
