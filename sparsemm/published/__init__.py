"""The paper's numbers (arXiv 2506.05344 v1, tables and figures as read there), and ours beside them."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

SOURCE = "arXiv 2506.05344 v1"
# Names in the paper, by the last part of a hub id and by the first part of a task's name.
MODELS = {
    "llava-v1.6-vicuna-7b-hf": "llava-next-vicuna-7b",
    "llava-v1.6-mistral-7b-hf": "llava-next-mistral-7b",
    "Qwen2-VL-7B-Instruct": "qwen2-vl-7b-instruct",
}
BENCHMARKS = {
    "docvqa": "DocVQA",
    "ocrbench": "OCRBench",
    "textvqa": "TextVQA",
    "chartqa": "ChartQA",
    "textcaps": "TextCaps",
    "mmbench": "MMBench",
    "gqa": "GQA",
    "vqav2": "VQAv2",
}


class Beside(NamedTuple):
    """One of our numbers and the published one: `diff` is ours minus theirs, with our 95 % interval alone."""

    task: str
    method: str
    budget: int
    metric: str
    ours: float
    published: float
    diff: float
    low: float
    high: float


def accuracy(checkpoint: str, task: str) -> dict[tuple[str, int], tuple[float, str]]:
    """(method, budget) -> (value, metric) that the paper gives for a model and a task; empty where it has none.

    Percentages become shares, as our metrics are.

    Args:
        checkpoint: hub id. A local folder is nobody's published model.
        task: name of a task, of which the part before the first "_" counts.
    """
    model = None if Path(checkpoint).is_dir() else MODELS.get(checkpoint.rpartition("/")[2])
    benchmark = BENCHMARKS.get(task.partition("_")[0].lower())
    found = {}
    for row in _rows("accuracy.csv"):
        if (row["model"], row["benchmark"]) == (model, benchmark):
            scale = 0.01 if row["metric"].endswith("_percent") else 1.0
            found[row["method"], int(row["budget"])] = float(row["value"]) * scale, row["metric"]
    return found


def ablations(study: str) -> list[dict[str, str]]:
    """Rows of the paper's other numbers: benchmark, metric, model, setting, budget, value."""
    return [row for row in _rows("ablations.csv") if row["study"] == study]


def beside(checkpoint: str, rows: Iterable[Mapping[str, Any]]) -> list[Beside]:
    """Rows of the study `curve` that the paper has too: same model, task, method and budget, each once.

    The number of pages of theirs is not known here, so that the interval is ours alone.
    """
    found: dict[tuple[str, str, int], Beside] = {}
    for row in rows:
        if row["condition"] or not row["budget"]:
            continue
        task, method, budget = row["task"], row["setting"], int(row["budget"])
        theirs = accuracy(checkpoint, task).get((method, budget))
        if theirs is None:
            continue
        value, metric = theirs
        ours, low, high = (float(row[column]) for column in ("value", "ci_low", "ci_high"))
        at = task, method, budget
        found[at] = Beside(*at, metric, ours, value, ours - value, low - value, high - value)
    return list(found.values())


def _rows(name: str) -> list[dict[str, str]]:
    with open(Path(__file__).with_name(name), newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))
