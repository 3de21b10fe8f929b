"""The numbers of the paper (arXiv 2506.05344 v1, from its tables and figures), and ours beside them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sparsemm.tables import Row, read_rows

SOURCE = "arXiv 2506.05344 v1"
# The paper's names of models, by the last part of a hub id, and of tasks, by the first part of the name.
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


class Published(Row):
    """One row of accuracy.csv."""

    model: str
    benchmark: str
    method: str
    budget: int
    metric: str
    value: float


def accuracy(checkpoint: str, task: str) -> dict[tuple[str, int], tuple[float, str]]:
    """Returns (value, metric) by (method, budget) from the paper for a model and a task; empty if it has none.

    Percentages are converted to shares.

    Args:
        checkpoint: hub id; for a local folder there are no published numbers.
        task: name of a task; the part before the first "_" counts.
    """
    model = None if Path(checkpoint).is_dir() else MODELS.get(checkpoint.rpartition("/")[2])
    benchmark = BENCHMARKS.get(task.partition("_")[0].lower())
    return {
        (row.method, row.budget): (row.value * (0.01 if row.metric.endswith("_percent") else 1.0), row.metric)
        for row in read_rows(Path(__file__).with_name("accuracy.csv"), Published)
        if (row.model, row.benchmark) == (model, benchmark)
    }


def beside(checkpoint: str, rows: Iterable[Any]) -> list[tuple[Any, float, str]]:
    """Returns the rows of the study `curve` that the paper has too, with the published value and its metric.

    Args:
        checkpoint: hub id.
        rows: rows of type `sparsemm.studies.StudyRow`, which are matched by task, setting and budget.
    """
    same = {}
    for row in rows:
        if not row.condition and (theirs := accuracy(checkpoint, row.task).get((row.setting, row.budget))):
            same[row.task, row.setting, row.budget] = (row, *theirs)
    return list(same.values())
