"""Study: does a method lose more on long answers? Accuracy by length of the reference answer, over all budgets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from sparsemm.evaluate.rows import Arm, Outcome, Row, by_method
from sparsemm.params.studies import StudyParams
from sparsemm.studies import Rows, Study, spread

if TYPE_CHECKING:
    from sparsemm.studies.common.evaluated import Evaluated


class LengthParams(StudyParams):
    """The number of groups of answers."""

    groups: int = Field(3, ge=2, description="groups of about equal size, short to long")


def by_length(answers: list[str], groups: int) -> dict[str, NDArray[np.int64]]:
    """Groups answers by their number of characters, short to long, and returns their indices by the group's name.

    There are at most `groups` groups of about equal size; answers of equal length are in the same group.
    """
    lengths = np.array([len(answer) for answer in answers])
    ordered = np.sort(lengths)
    firsts = sorted({int(ordered[len(ordered) * i // groups]) for i in range(groups)})
    indices = {}
    for low, above in zip(firsts, [*firsts[1:], int(ordered[-1]) + 1], strict=True):
        inside = np.flatnonzero((lengths >= low) & (lengths < above))
        longest = int(lengths[inside].max())
        indices[f"{low} characters" if low == longest else f"{low}-{longest} characters"] = inside
    return indices


def conclusion(rows: Rows) -> str:
    """Says whether sparsemm loses more on the longest answers than on the shortest."""
    losses: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for row in rows:
        if row.of_sparsemm and row.against_full and row.diff is not None:
            characters = int(row.condition.split("-")[0].split()[0])
            losses.setdefault((row.model, row.task), []).append((characters, row.diff))
    cases = [(min(groups)[1], max(groups)[1]) for groups in losses.values() if len(groups) > 1]
    if not cases:
        return ""
    shortest, longest = zip(*cases, strict=True)
    lower = sum(one < other for other, one in cases)
    return (
        f"sparsemm minus the full cache is {spread(shortest, '+')} on the shortest answers and "
        f"{spread(longest, '+')} on the longest; it is lower on the longest in {lower} of {len(cases)} cases "
        "(model, task)."
    )


def run(evaluated: Evaluated, options: LengthParams) -> list[Row]:
    """Returns one row per task, group of answers, method and comparison: the area over log2 B within the group.

    Raises:
        DataError: if the evaluation is missing or malformed.
    """
    samples = evaluated.samples
    outcomes: dict[Arm, Outcome] = {}
    for task in samples.tasks():
        for group, inside in by_length(samples.answers[task], options.groups).items():
            for method in samples.methods(task):
                way, values = (task, method, None), samples.areas(task, method)
                outcomes[Arm(task, group, method)] = samples.outcome(way, values, inside)
    return evaluated.rows(outcomes, by_method)


STUDY = Study(
    params=LengthParams,
    run=run,
    group="derived",
    title="Long answers",
    question="Does a method lose more where the reference answer is long? Accuracy is a mean over all budgets, within "
    "groups of answers by their length.",
    conclusion=conclusion,
    headline=lambda row: row.of_sparsemm and row.against_full,
)
