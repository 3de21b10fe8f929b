"""The profile stage: every method and length of one model, methods in turn so that noise hits them alike."""

from __future__ import annotations

import csv
import platform
import statistics
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import DynamicCache

from sparsemm.cache import CompressedCache, compressed_cache
from sparsemm.datasets.records import read_records
from sparsemm.files import atomic_path, write_json
from sparsemm.models import load_model
from sparsemm.params import Params
from sparsemm.profiling.latency import Timing, prompt_of_length, time_once
from sparsemm.progress import progress
from sparsemm.scores import ScoreTable

BASELINE = "transformers"  # its own growing cache and sdpa, nothing of ours
COLUMNS = (
    "model method budget prompt_length batch_size prefill_ms decode_ms_per_token decode_ratio_to_full "
    "kept_bytes slab_bytes full_bytes"
).split()


def run(params: Params, key: str, root: Path = Path(".")) -> None:
    """Write artifacts/profile/<key>.csv and .json; medians over repetitions after one warm-up each.

    `decode_ratio_to_full` is the time of a token over its time with transformers' own full cache, in the same run.
    `kept_bytes` are the keys and values in use after the last token, `slab_bytes` what is allocated for them,
    `full_bytes` what the full cache holds then.

    Raises:
        ScoreTableError: if the score table is missing or of another model.
        DataError: if a length is too short for the image.
    """
    given = params.profile
    model, processor = load_model(params.model(key))
    scores = ScoreTable.load(root / "artifacts" / "scores" / f"{key}.safetensors")
    scores.check_model(model.config)
    (record,) = read_records(root / "artifacts" / "datasets" / f"{params.evaluate.dataset}.parquet", limit=1)
    methods = [BASELINE, *given.methods]
    rows: list[dict[str, Any]] = []
    turns = [(length, turn) for length in given.lengths for turn in range(given.repetitions + 1)]
    timings: dict[tuple[int, str], list[Timing]] = {}
    held: dict[tuple[int, str], tuple[int, int]] = {}
    inputs: dict[str, Any] = {}
    for length, turn in progress(turns, len(turns), f"profile {key}"):
        if turn == 0:
            inputs = prompt_of_length(processor, record.image, length, given.batch_size)
            inputs = {k: v.to(model.device) for k, v in inputs.items()}
            inputs = {k: v.to(model.dtype) if v.is_floating_point() else v for k, v in inputs.items()}
        for method in methods:
            cache = _cache(model, method, params, scores)
            timing = time_once(model, inputs, cache, given.new_tokens)
            if turn > 0:  # the first turn warms up
                timings.setdefault((length, method), []).append(timing)
            held[length, method] = _bytes(cache)
    for length in given.lengths:
        full = _decode_ms(timings[length, BASELINE])
        for method in methods:
            seen = timings[length, method]
            kept, slab = held[length, method]
            rows.append(
                {
                    "model": key,
                    "method": method,
                    "budget": "" if method in (BASELINE, "full") else given.budget,
                    "prompt_length": length,
                    "batch_size": given.batch_size,
                    "prefill_ms": round(1e3 * statistics.median(t.prefill for t in seen), 4),
                    "decode_ms_per_token": round(_decode_ms(seen), 4),
                    "decode_ratio_to_full": round(_decode_ms(seen) / full, 4),
                    "kept_bytes": kept,
                    "slab_bytes": slab,
                    "full_bytes": held[length, BASELINE][0],
                }
            )
    folder = root / "artifacts" / "profile"
    with atomic_path(folder / f"{key}.csv") as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    device = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else platform.machine()
    metrics: dict[str, Any] = {"device": device, "threads": torch.get_num_threads()}
    metrics |= {"torch": torch.__version__, "transformers": transformers.__version__}
    for row in rows:
        per_method = metrics.setdefault("decode_ratio_to_full", {}).setdefault(row["method"], {})
        per_method[str(row["prompt_length"])] = row["decode_ratio_to_full"]
    write_json(folder / f"{key}.json", metrics)


def _cache(model: Any, method: str, params: Params, scores: ScoreTable) -> Any:
    if method == BASELINE:
        model.set_attn_implementation({"text_config": "sdpa"})
        return DynamicCache()
    return compressed_cache(
        model,
        method,
        params.profile.budget,
        scores,
        window=params.allocate.window,
        rho=params.allocate.rho,
        mode=params.allocate.mode,
        pooling_kernel=params.evaluate.pooling_kernel,
        seed=params.evaluate.seed,
    )


def _bytes(cache: Any) -> tuple[int, int]:
    if isinstance(cache, CompressedCache):
        return cache.kept_bytes(), cache.slab_bytes()
    total = sum(2 * layer.keys.numel() * layer.keys.element_size() for layer in cache.layers)
    return total, total


def _decode_ms(seen: list[Timing]) -> float:
    return 1e3 * statistics.median(step for timing in seen for step in timing.decode)
