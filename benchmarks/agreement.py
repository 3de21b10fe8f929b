"""`python -m benchmarks agreement`: compares operations with their references, and 8-bit storage with the own dtype."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from benchmarks.operations import check
from sparsemm.cache import compressed_cache
from sparsemm.cache.quantized import STORAGES
from sparsemm.datasets.synthetic import PageStyle, draw_record
from sparsemm.errors import DataError
from sparsemm.models import load_model
from sparsemm.ops import OPERATIONS
from sparsemm.params import ModelParams
from sparsemm.profiling.bench.setting import BenchResult, Setting
from sparsemm.prompts import build_inputs

CHECKPOINTS = {"tiny-llava-next-vicuna": "llava_next", "tiny-qwen2-vl": "qwen2_vl"}
FOLDER = Path("data/checkpoints")
PAGES, NEW_TOKENS, ROUNDS = 16, 24, 100
KEPT = {"full": 0, "snapkv": 24}  # method: slots; full has no budget


def run(setting: Setting) -> BenchResult:
    """Measures the worst difference of every operation, and the share of equal tokens of every storage.

    Raises:
        DataError: if a small checkpoint of the repository is missing.
    """
    rows = [check(op, setting.device, seconds=60, rounds=ROUNDS) for op in OPERATIONS]
    ratios: dict[str, float] = {f"worst_{row['op']}": row["worst"] for row in rows}
    ratios |= {f"failed_{row['op']}": row["failed"] for row in rows}
    for name, family in CHECKPOINTS.items():
        if not (FOLDER / name).is_dir():
            raise DataError("a small checkpoint is missing", where=str(FOLDER / name), hint="run in the repository")
        entry = ModelParams.model_validate({"checkpoint": str(FOLDER / name), "family": family})
        for row in _storages(*load_model(entry, str(setting.device))):
            rows.append({"model": name} | row)
            ratios[f"{row['storage']}_{row['method']}_{name}"] = row["share"]
    return rows, ratios


def _storages(model: Any, processor: Any) -> list[dict[str, Any]]:
    """Measures the share of tokens on synthetic pages that are the same with 8-bit storage and without."""
    images = [[draw_record("evaluation", 0, index, PageStyle()).image] for index in range(PAGES)]
    inputs = build_inputs(processor, images, ["Read the page."] * PAGES).to(model.device)
    rows = []
    for method, budget in KEPT.items():

        def generated(storage: str, method: str = method, budget: int = budget) -> torch.Tensor:
            cache = compressed_cache(model, method, max(budget, 1), window=4, storage=storage)
            tokens = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}
            return model.generate(**inputs, past_key_values=cache, do_sample=False, **tokens)[:, -NEW_TOKENS:]

        own = generated("model")
        for storage in STORAGES:
            share = float((generated(storage) == own).double().mean())
            rows.append({"method": method, "storage": storage, "tokens": own.numel(), "share": round(share, 4)})
    return rows
