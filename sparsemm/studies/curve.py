"""Study: accuracy against budget, and the area under it (paper, figures 4 and 5), from the evaluate stage's samples."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsemm.evaluate.rows import AREA, Arm, Outcome, Row, by_method
from sparsemm.params.studies import StudyParams
from sparsemm.studies import Rows, Study, StudyRow, against_each, sentence

if TYPE_CHECKING:
    from sparsemm.studies.common.evaluated import Evaluated


def conclusion(rows: Rows) -> str:
    """Compares sparsemm's mean accuracy over all budgets with that of every other method."""
    return sentence("As a mean over all budgets, sparsemm is, against ", against_each([r for r in rows if headline(r)]))


def headline(row: StudyRow) -> bool:
    """Tells whether a row compares the area of sparsemm with that of another method."""
    return row.condition == AREA and row.of_sparsemm


def run(evaluated: Evaluated, options: StudyParams) -> list[Row]:
    """Returns one row per task, method, budget and comparison, with nominal budgets and real bytes; then the areas.

    Raises:
        DataError: if the evaluation is missing or malformed, or methods were run at different budgets.
    """
    samples, kept = evaluated.samples, evaluated.kept
    outcomes: dict[Arm, Outcome] = {}
    for way in samples.values:
        task, method, budget = way
        slots, size = kept.get(way, (None, None))
        outcomes[Arm(task, "", method, None, budget)] = samples.outcome(way, kept=slots, bytes=size)
    for task in samples.tasks():
        for method in samples.methods(task):
            way = (task, method, None)
            outcomes[Arm(task, AREA, method)] = samples.outcome(way, samples.areas(task, method))
    return evaluated.rows(outcomes, by_method)


STUDY = Study(
    params=StudyParams,
    run=run,
    group="derived",
    title="Accuracy over all budgets as one number",
    question="The area under accuracy over log2 B, divided by its width, is a mean accuracy over all budgets. It gives"
    " one comparison per method instead of one per budget.",
    conclusion=conclusion,
    headline=headline,
    drawn=lambda rows: [row for row in rows if row.condition == AREA] or rows,
)
