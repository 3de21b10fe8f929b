"""Small studies, and tables as other stages would have written them."""

from __future__ import annotations

import csv

import pyarrow as pa
import pyarrow.parquet as pq

KEY = "tiny-qwen2-vl"
FEW = {"samples": 3, "tasks": ["qa"]}
STUDIES = {
    "derived": {
        "curve": {},
        "length": {"groups": 2},
        "cost": {},
    },
    "measured": {
        "masking": FEW | {"fractions": [0.1], "zero": ["query"], "seeds": 2},
        "rho": {"samples": 3, "values": [0.5], "budget": 12},
        "parts": FEW | {"budgets": [12]},
        "later": {"samples": 3, "methods": ["full", "sparsemm", "snapkv"], "budgets": [12]},
        "holding": FEW | {"methods": ["full", "sparsemm", "h2o"], "budgets": [12]},
        "storage": FEW | {"methods": ["snapkv"], "budgets": [12]},
    },
    "compared": {
        "sources": FEW | {"budgets": [12]},
    },
    "watched": {
        "looking": {"samples": 3},
    },
    "searched": {
        "search": FEW | {"held_out": 1, "budgets": [8, 12]},
    },
    "confirmed": {
        "confirm": FEW | {"held_out": 1, "budgets": [8, 12], "methods": ["snapkv", "full"]},
    },
}


def write_samples(root, values, key="m", answers=("ab", "abcd")):
    """The evaluate stage's samples: {(task, method, budget): values of every page, or of several draws}."""
    rows = []
    for (task, method, budget), draws in values.items():
        for draw in draws if isinstance(draws[0], list) else [draws]:
            for page, value in enumerate(draw):
                row = {"task": task, "method": method, "budget": budget, "id": str(page), "value": float(value)}
                rows.append(row | {"answer": answers[page % len(answers)], "prediction": ""})
    folder = root / "artifacts" / "evaluate"
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{key}.samples.parquet")
    write_csv(
        folder / f"{key}.csv",
        [
            {"task": t, "method": m, "budget": b or "", "kept_slots": (b or 90) + 0.5, "bytes": 64 * (b or 90)}
            for t, m, b in values
        ],
    )


def write_csv(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
