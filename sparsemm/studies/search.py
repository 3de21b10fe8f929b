"""Is there a better allocation than the paper's at equal slots? All candidates, on all but the held-out pages."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sparsemm.errors import DataError
from sparsemm.evaluate.answers import Variant
from sparsemm.evaluate.rows import Arm, Outcome, Row
from sparsemm.evaluate.statistics import area
from sparsemm.params.studies import SearchParams
from sparsemm.studies.bench import Bench
from sparsemm.studies.candidates import CANDIDATES
from sparsemm.studies.curve import AREA
from sparsemm.studies.declaration import Rows, Study, StudyRow, sentence
from sparsemm.studies.margin import margin_table
from sparsemm.studies.names import OVERALL, PAPER

Way = tuple[str, int | None]  # setting, budget

BEST = 6  # candidates that are drawn


def leading(rows: Rows) -> list[StudyRow]:
    """Rows of the paper's allocation and of the `BEST` candidates with the largest area, areas first."""
    areas = {row.setting: row.value for row in rows if row.task == OVERALL and row.setting != PAPER}
    order = [PAPER, *sorted(areas, key=lambda name: -areas[name])[:BEST]]
    return sorted(
        (row for name in order for row in rows if row.setting == name),
        key=lambda row: (row.task != OVERALL, row.condition != AREA),
    )


def mean_areas(rows: Rows) -> dict[str, float]:
    """Candidates that keep as many slots as the paper's -> area of their search, mean over tasks and models.

    Raises:
        DataError: if a search is not over today's candidates.
    """
    tables = []
    for model in dict.fromkeys(row.model for row in rows):
        own = [row for row in rows if (row.model, row.task, row.condition) == (model, OVERALL, AREA)]
        areas = {row.setting: row.value for row in own}
        if set(areas) != set(CANDIDATES):
            where = f"artifacts/studies/search/{model}.csv"
            raise DataError("not a search over today's candidates", where=where, hint="run its stage again")
        tables.append(areas)
    exact = [name for name, one in CANDIDATES.items() if one.mode == "exact"]
    return {name: sum(areas[name] for areas in tables) / len(tables) for name in exact if tables}


def conclusion(rows: Rows) -> str:
    """The best candidate over all models, and of every model."""
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
        mine = [
            row for row in rows if (row.model, row.task, row.condition) == (model, OVERALL, AREA) and row.difference
        ]
        if mine:
            best = max(mine, key=lambda row: row.value)
            parts.append(f"{model}: {best.setting} ({best.difference.text('+')}, {best.verdict})")  # type: ignore[union-attr]
    return sentence("Model by model, minus the paper's allocation: ", parts)


STUDY = Study(
    title="A better allocation than the paper's",
    question="Other ways from the same scores to slots, at equal slots, on the pages of the search alone. `sparsemm` "
    "is the paper's allocation with exact totals. `overflow lost` keeps fewer slots and cannot be chosen. "
    "Charts show the best by area; among so many the best looks better than it is.",
    conclusion=conclusion,
    headline=lambda row: row.task == OVERALL and row.condition == AREA,
    drawn=leading,
)


def split(given: SearchParams) -> tuple[slice, slice]:
    """The pages of the search, and those held out: the last ones."""
    asked = given.samples - given.held_out
    return slice(0, asked), slice(asked, given.samples)


def candidate(bench: Bench, name: str, budget: int) -> Variant:
    """A cache with the allocation of that name."""
    one = CANDIDATES[name]
    table = margin_table(bench) if one.margin else bench.scores
    return bench.variant(one.method, budget, one.weights(table), **one.options())


def measure(bench: Bench, given: SearchParams, pages: slice, variants: Mapping[Way, Variant]) -> dict[Arm, Outcome]:
    """Outcomes of every (setting, budget), the areas under them, and the mean of these over tasks, page by page."""
    ways = {Arm(task, "", setting, None, b): one for task in given.tasks for (setting, b), one in variants.items()}
    measured, outcomes = bench.measure(ways, pages=pages), dict[Arm, Outcome]()
    settings = list(dict.fromkeys(setting for setting, _ in variants))
    for task in given.tasks:
        outcomes |= {arm: one for arm, one in measured.items() if arm.task == task}
        for setting in settings:
            curve = {arm.budget: one for arm, one in measured.items() if (arm.task, arm.setting) == (task, setting)}
            values = curve[None].values if None in curve else _area(curve)
            outcomes[Arm(task, AREA, setting)] = Outcome(values, next(iter(curve.values())).metric)
    for setting in settings:
        tasks = np.stack([outcomes[Arm(task, AREA, setting)].values for task in given.tasks])
        outcomes[Arm(OVERALL, AREA, setting)] = Outcome(tasks.mean(axis=0), "mean over tasks")
    return outcomes


def _area(curve: Mapping[int | None, Outcome]) -> np.ndarray:
    budgets = sorted(b for b in curve if b is not None)
    return area(np.stack([curve[b].values for b in budgets]), budgets)


def run(bench: Bench, given: SearchParams) -> list[Row]:
    """One row per task, candidate and budget, and per area; each is compared with the paper's allocation."""
    variants = {(name, budget): candidate(bench, name, budget) for name in CANDIDATES for budget in given.budgets}
    outcomes = measure(bench, given, split(given)[0], variants)
    return bench.rows(outcomes, lambda arm: [arm._replace(setting=PAPER)])
