"""Study: is another allocation better than the paper's at equal slots? All candidates, without the held-out pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsemm.errors import DataError
from sparsemm.evaluate.rows import AREA, OVERALL, PAPER, Row
from sparsemm.studies import Rows, Study, StudyRow, sentence
from sparsemm.studies.common.allocations import CANDIDATES, SearchParams, Way, candidate, measure, split

if TYPE_CHECKING:
    from sparsemm.evaluate.answers import Variant
    from sparsemm.studies.common.experiment import Experiment

BEST = 6  # number of candidates in the charts


def leading(rows: Rows) -> list[StudyRow]:
    """Returns the rows of the paper's allocation and of the `BEST` candidates with the largest area, areas first."""
    areas = {row.setting: row.value for row in rows if row.task == OVERALL and row.setting != PAPER}
    order = [PAPER, *sorted(areas, key=lambda name: -areas[name])[:BEST]]
    return sorted(
        (row for name in order for row in rows if row.setting == name),
        key=lambda row: (row.task != OVERALL, row.condition != AREA),
    )


def mean_areas(rows: Rows) -> dict[str, float]:
    """Returns the area of every candidate with exact totals, averaged over tasks and models.

    Raises:
        DataError: if a search was over other candidates.
    """
    tables = []
    for model in dict.fromkeys(row.model for row in rows):
        own = [row for row in rows if (row.model, row.task, row.condition) == (model, OVERALL, AREA)]
        areas = {row.setting: row.value for row in own}
        if set(areas) != set(CANDIDATES):
            where = f"artifacts/studies/search/{model}.csv"
            raise DataError("the search was over other candidates", where=where, hint="run its stage again")
        tables.append(areas)
    exact = [name for name, one in CANDIDATES.items() if one.mode == "exact"]
    return {name: sum(areas[name] for areas in tables) / len(tables) for name in exact if tables}


def conclusion(rows: Rows) -> str:
    """Names the best candidate over all models, and of every model."""
    areas = mean_areas(rows)
    if not areas:
        return ""
    best = max(areas, key=lambda name: areas[name])  # of equal ones the first
    beside = "" if best == PAPER else f", {PAPER} {areas[PAPER]:.3f}"
    return f"Best by the searches, as a mean over tasks and models: {best} (area {areas[best]:.3f}{beside}). " + _each(
        rows
    )


def _each(rows: Rows) -> str:
    parts = []
    for model in dict.fromkeys(row.model for row in rows):
        gains = [
            row for row in rows if (row.model, row.task, row.condition) == (model, OVERALL, AREA) and row.difference
        ]
        if gains:
            best = max(gains, key=lambda row: row.value)
            parts.append(f"{model}: {best.setting} ({best.difference.text('+')}, {best.verdict})")  # type: ignore[union-attr]
    return sentence("Model by model, minus the paper's allocation: ", parts)


def run(experiment: Experiment, options: SearchParams) -> list[Row]:
    """Returns one row per task, candidate and budget, and per area, compared with the paper's allocation."""
    variants: dict[Way, Variant] = {
        (name, budget): candidate(experiment, name, budget) for name in CANDIDATES for budget in options.budgets
    }
    outcomes = measure(experiment, options, split(options)[0], variants)
    return experiment.rows(outcomes, lambda arm: [arm._replace(setting=PAPER)])


STUDY = Study(
    params=SearchParams,
    run=run,
    title="A better allocation than the paper's",
    question="Other arms from the same scores to slots, at equal slots, on the pages of the search alone. `sparsemm` "
    "is the paper's allocation with exact totals. `overflow lost` keeps fewer slots and cannot be chosen. "
    "Charts show the best by area; among so many the best looks better than it is.",
    conclusion=conclusion,
    headline=lambda row: row.task == OVERALL and row.condition == AREA,
    drawn=leading,
)
