"""Is there a better allocation than the paper's at equal slots? All candidates, on all but the held-out pages."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sparsemm.evaluate.statistics import area
from sparsemm.params.studies import SearchParams
from sparsemm.studies.answers import Kept
from sparsemm.studies.bench import Bench
from sparsemm.studies.candidates import CANDIDATES, IDENTITY
from sparsemm.studies.curve import AREA
from sparsemm.studies.margin import margin_table
from sparsemm.studies.names import OVERALL, PAPER
from sparsemm.studies.rows import Arm, Outcome, Row

Way = tuple[str, int | None]  # setting, budget


def split(given: SearchParams) -> tuple[slice, slice]:
    """The pages of the search, and those held out: the last ones."""
    asked = given.samples - given.held_out
    return slice(0, asked), slice(asked, given.samples)


def candidate(bench: Bench, name: str, budget: int) -> Kept:
    """A cache with the allocation of that name."""
    one = CANDIDATES[name]
    table = margin_table(bench) if one.margin else bench.scores
    return bench.kept(one.method, budget, one.weights(table), **one.options())


def measure(bench: Bench, given: SearchParams, unit: str, pages: slice, ways: Mapping[Way, Kept]) -> dict[Arm, Outcome]:
    """Answers of every (setting, budget), the areas under them, and the mean of these over tasks, page by page."""
    outcomes: dict[Arm, Outcome] = {}
    names = {way: f"{way[0]} {way[1]}" for way in ways}
    settings = list(dict.fromkeys(setting for setting, _ in ways))
    for task in given.tasks:
        said = bench.keep(f"{task}{unit}-{IDENTITY}", task, {names[way]: kept for way, kept in ways.items()}, pages)
        outcomes |= {Arm(task, "", setting, None, b): said[names[setting, b]] for setting, b in ways}
        for setting in settings:
            curve = {b: said[names[s, b]] for s, b in ways if s == setting}
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
    ways: dict[Way, Kept] = {
        (name, budget): candidate(bench, name, budget) for name in CANDIDATES for budget in given.budgets
    }
    outcomes = measure(bench, given, "", split(given)[0], ways)
    return bench.rows(outcomes, lambda arm: [arm._replace(setting=PAPER)])
