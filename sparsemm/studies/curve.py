"""Accuracy against budget, and the area under it (paper, figures 4 and 5), from the evaluate stage's samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sparsemm.evaluate.rows import Arm, Outcome, Row, by_method, tabulate
from sparsemm.evaluate.samples import Samples, kept, options, read_samples
from sparsemm.evaluate.statistics import area
from sparsemm.params import Params
from sparsemm.params.studies import Derived
from sparsemm.studies.declaration import Rows, Study, StudyRow, against_each, sentence

AREA = "area over log2 B"


def areas(samples: Samples, task: str, method: str) -> np.ndarray:
    """(draws, n) area under every sample's accuracy; of the full cache, its accuracy."""
    budgets = samples.budgets(task, method)
    if not budgets:
        return samples.values[task, method, None]
    curves = np.stack([samples.values[task, method, budget] for budget in budgets], axis=1)  # (draws, budgets, n)
    return np.stack([area(curve, budgets) for curve in curves])


def conclusion(rows: Rows) -> str:
    """sparsemm's mean accuracy over all budgets against every other method's."""
    return sentence("As a mean over all budgets, sparsemm is, against ", against_each([r for r in rows if headline(r)]))


def headline(row: StudyRow) -> bool:
    """Areas of sparsemm against other methods."""
    return row.condition == AREA and row.of_sparsemm


STUDY = Study(
    title="Accuracy over all budgets as one number",
    question="The area under accuracy over log2 B, divided by its width, is a mean accuracy over all budgets. It gives"
    " one comparison per method instead of one per budget.",
    conclusion=conclusion,
    headline=headline,
    drawn=lambda rows: [row for row in rows if row.condition == AREA] or rows,
)


def run(params: Params, given: Derived, key: str, root: Path) -> list[Row]:
    """One row per task, method, budget and comparison, with nominal budgets and real bytes; then the areas.

    Raises:
        DataError: if the evaluation is missing or malformed, or methods were run at different budgets.
    """
    samples, real = read_samples(root, key), kept(root, key)
    outcomes: dict[Arm, Outcome] = {}
    for way in samples.values:
        task, method, budget = way
        slots, size = real.get(way, (None, None))
        outcomes[Arm(task, "", method, None, budget)] = samples.outcome(way, kept=slots, bytes=size)
    for task in samples.tasks():
        for method in samples.methods(task):
            way = (task, method, None)
            outcomes[Arm(task, AREA, method)] = samples.outcome(way, areas(samples, task, method))
    return tabulate({"model": key, "study": "curve"}, outcomes, by_method, **options(params, given.precision))
