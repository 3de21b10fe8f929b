"""Measures what methods save that share a prefill and decode together: `python -m benchmarks.saving KEY`."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from sparsemm.budgets import load_budgets
from sparsemm.datasets.records import read_records
from sparsemm.errors import DataError
from sparsemm.evaluate.answers import Variant, answer, make_batch
from sparsemm.evaluate.tasks.pages import PageTask
from sparsemm.models import load_model
from sparsemm.params import Params, load_params
from sparsemm.policies import budgets_of, make_policy_from
from sparsemm.profiling.clock import heading
from sparsemm.scores import ScoreTable


def measure(params: Params, key: str, root: Path, samples: int, repeats: int) -> dict[str, Any]:
    """Returns the seconds of one batch of the task `read` under every method and budget, in three ways.

    With a prefill for each method, with one that they share, and with a shared one and decode steps of several methods
    at once. The ways take turns; medians are over `repeats` turns each.

    Raises:
        DataError: if the ways differ in an answer.
    """
    settings = params.evaluate
    records = read_records(root / "artifacts" / "datasets" / f"{settings.dataset}.parquet", limit=samples)
    questions = PageTask("read", records, params.chase.prompt, settings.seed).questions
    plan = load_budgets(root / "artifacts" / "budgets" / f"{key}.json")
    scores = ScoreTable.load(root / "artifacts" / "scores" / f"{key}.safetensors")
    model, processor = load_model(params.model(key))
    head = heading("saving", model.device, model=key)
    options = {"pooling_kernel": settings.pooling_kernel, "seed": settings.seed, **plan.settings}
    batch = make_batch(processor, questions, range(len(questions)))
    variants = {
        f"{method} {budget}": Variant(make_policy_from(method, budget, scores, options))
        for method in settings.methods
        for budget in budgets_of(method, plan.budgets)
    }
    ways = {
        "together": (replace(batch, most_rows=settings.batch_size), [variants]),
        "shared": (batch, [variants]),
        "separate": (batch, [{name: one} for name, one in variants.items()]),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    work: dict[str, list[float]] = {way: [] for way in ways}  # of the processor: what others do does not count
    for _ in range(repeats):
        outputs = {}
        for way, (asked, groups) in ways.items():
            start, before = time.perf_counter(), time.process_time()
            replies = [answer(model, asked, group, settings.max_new_tokens) for group in groups]
            outputs[way] = {name: reply for group in replies for name, reply in group.items()}
            seconds[way].append(time.perf_counter() - start)
            work[way].append(time.process_time() - before)
        if not outputs["together"] == outputs["shared"] == outputs["separate"]:
            raise DataError("the answers depend on how methods share their work", where=key)
    result = {f"{way}_seconds": round(median(times), 3) for way, times in seconds.items()}
    result |= {f"{way}_cpu_seconds": round(median(times), 3) for way, times in work.items()}
    ratios = {way: round(result["separate_seconds"] / result[f"{way}_seconds"], 3) for way in ("shared", "together")}
    return head | {"variants": len(variants), "rows": len(questions), **result, "separate_over": ratios}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("key", help="model key")
    parser.add_argument("--root", type=Path, default=Path("."), help="the repository")
    parser.add_argument("--samples", type=int, default=16, help="rows of the batch (16)")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each way (3)")
    chosen = parser.parse_args()
    torch.set_num_threads(1)  # with more, a small model shares the methods between processes, but not a single one
    figures = measure(load_params(chosen.root / "params.yaml"), chosen.key, chosen.root, chosen.samples, chosen.repeats)
    print(json.dumps(figures, indent=2))
