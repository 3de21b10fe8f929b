"""What was measured, as a table with intervals, as metrics, and one row per document."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparsemm.evaluate.statistics import difference, estimate, page_numbers
from sparsemm.evaluate.tasks import METRICS, Scored
from sparsemm.files import atomic_path, write_json
from sparsemm.params.stages import EvaluateParams

COLUMNS = (
    "model task method budget kept_slots bytes metric value n pages ci_low ci_high "
    "diff_vs_sparsemm diff_ci_low diff_ci_high diff_vs_full diff_full_ci_low diff_full_ci_high draws"
).split()


@dataclass(frozen=True)
class Outcome:
    """One task, method and budget.

    Attributes:
        samples: one per document that counts.
        kept: slots each document kept after prefill, summed over layers and KV heads.
        slot_bytes: of K and V of one token in one KV head.
        heads: KV heads of all layers.
    """

    samples: list[Scored]
    kept: list[int]
    slot_bytes: int
    heads: int


def write_results(
    given: EvaluateParams, key: str, outcomes: dict[tuple[str, str, int | None], list[Outcome]], folder: Path
) -> None:
    """Rows with 95 % bootstrap intervals over pages, paired, as CSV, metrics JSON and one row per sample.

    Args:
        outcomes: by task, method and budget: one, or several draws of a random method, which count sample by sample by
            their mean.
        folder: of <key>.csv, <key>.json and <key>.samples.parquet.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = []
    metrics: dict[str, Any] = {}
    for task in given.tasks:
        mine = {one[1:]: outcome for one, outcome in outcomes.items() if one[0] == task}
        names = list(mine)
        drawn = [[[one.value for one in draw.samples] for draw in mine[name]] for name in names]
        values = np.array([np.mean(draws, axis=0) for draws in drawn], dtype=np.float64)
        pages = page_numbers([one.page for one in mine[names[0]][0].samples])
        index = {name: i for i, name in enumerate(names)}
        for name, draws in mine.items():
            (method, budget), outcome, i = name, draws[0], index[name]
            kept = float(np.mean(outcome.kept))
            row: dict[str, Any] = dict.fromkeys(COLUMNS, "")
            mean = estimate(values[i], given.bootstrap, given.seed, pages)
            row |= {
                "model": key,
                "task": task,
                "method": method,
                "budget": "" if budget is None else budget,
                "kept_slots": round(kept / outcome.heads, 4),
                "bytes": round(kept * outcome.slot_bytes),
                "metric": METRICS[task],
                "value": round(mean.value, 6),
                "n": values.shape[1],
                "pages": mean.pages,
                "ci_low": round(mean.low, 6),
                "ci_high": round(mean.high, 6),
                "draws": len(draws),
            }
            others = {"diff": ("sparsemm", budget), "diff_full": ("full", None)}
            for prefix, other in others.items():
                if other in index and other != name:
                    found = difference(values[i], values[index[other]], given.bootstrap, given.seed, pages)
                    row["diff_vs_full" if prefix == "diff_full" else "diff_vs_sparsemm"] = round(found.value, 6)
                    row[f"{prefix}_ci_low"], row[f"{prefix}_ci_high"] = round(found.low, 6), round(found.high, 6)
            rows.append(row)
            metrics.setdefault(task, {}).setdefault(method, {})[str(budget or "all")] = row["value"]
    samples = [
        {"task": task, "method": method, "budget": budget, "draw": number}
        | {"id": one.id, "page": one.page, "answer": one.answer, "prediction": one.prediction, "value": one.value}
        for (task, method, budget), draws in outcomes.items()
        for number, draw in enumerate(draws)
        for one in draw.samples
    ]
    with atomic_path(folder / f"{key}.samples.parquet") as temporary:
        pq.write_table(pa.Table.from_pylist(samples), temporary)
    with atomic_path(folder / f"{key}.csv") as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    write_json(folder / f"{key}.json", metrics)
