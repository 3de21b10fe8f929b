"""Recipes: the method that was found for one checkpoint, its options, and the evidence that it is worth using.

`sparsemm tune KEY` writes a recipe, the registry stores it beside the score table, and the method "auto" of
`compressed_cache` follows it. This module imports no torch, so params, commands and registry can read recipes quickly.
"""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict

from sparsemm.errors import BudgetError, DataError
from sparsemm.files import write_json
from sparsemm.statistics import WORSE, Estimate
from sparsemm.tables import read_json

log = logging.getLogger(__name__)
FORMAT = 1
BASELINE = "snapkv"  # uniform budgets: no recipe may be worse than it at equal bytes
PUBLISHED = "sparsemm"  # what "auto" uses for a score table without a recipe
Scenario = Literal["known", "later", "long"]
SCENARIOS: dict[Scenario, str] = {
    "known": "the question is part of the prompt that is compressed",
    "later": "the question comes after the page was compressed",
    "long": "the answer is long and its tokens count: no step ends above the budget",
}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Comparison(_Part):
    """One row of evidence: a method on the pages that the search never saw, minus another one on the same pages.

    Attributes:
        method, against: the two methods, with those of their options that are not as usual.
        task: name of a task, or "all tasks" for the mean over them.
        budget: mean slots per KV head; None for the mean accuracy over all budgets.
        value, low, high: accuracy of `method` and its 95 % interval.
        diff, diff_low, diff_high: paired difference and its 95 % interval; None for a single page.
        verdict: what that interval says, one of `sparsemm.statistics.VERDICTS`.
        kept_slots, bytes: what `method` kept: mean slots per KV head, and bytes of keys and values; None for a mean.
        pages: number of pages.
    """

    method: str
    against: str
    task: str
    budget: int | None
    value: float
    low: float | None
    high: float | None
    diff: float
    diff_low: float | None
    diff_high: float | None
    verdict: str | None
    kept_slots: float | None
    bytes: int | None
    pages: int

    @property
    def difference(self) -> Estimate:
        """The paired difference with its interval."""
        return Estimate(self.diff, self.diff_low, self.diff_high)


class Choice(_Part):
    """The method for one scenario."""

    name: str  # the method with those of its options that are not as usual, as the evidence calls it
    method: str  # name for `sparsemm.compressed_cache`, such as "sparsemm+peak"
    options: dict[str, Any]  # all its options
    winner: str  # name of the candidate that won the search; another one than `name` where it was not safe to use
    candidates: int  # how many candidates were tried
    failed: int  # how many of them failed
    why: str  # reason for the choice, in whole sentences
    # tokens that run before the first token of an answer, over those of the prompt: above 1 if pages are read again
    prefill_work: float = 1.0
    evidence: tuple[Comparison, ...]  # comparisons on the pages that the search never saw

    def worse(self) -> list[Comparison]:
        """Returns where the method is worse than `BASELINE` at equal slots beyond the 95 % interval.

        Each task counts, as does the mean over tasks; all of them over all budgets, because a single budget of a single
        task has too few pages to judge.
        """
        return [
            row
            for row in self.evidence
            if (row.method, row.against, row.budget, row.verdict) == (self.name, BASELINE, None, WORSE)
        ]


class Data(_Part):
    """The pages a recipe was found on, and proven on."""

    dataset: str  # key of the data set
    sha256: str  # hex digest of its file
    search: int  # number of pages to search on
    confirmation: int  # number of other pages, which prove the winner


class Recipe(_Part):
    """What `sparsemm tune` found for one checkpoint: artifacts/recipes/<key>.json."""

    format: Literal[1]
    model: str  # the checkpoint, as the header of its score table names it
    revision: str | None
    fingerprint: str
    scores: str  # hex digest of the values of the score table (`ScoreTable.digest`)
    data: Data
    budgets: tuple[int, ...]  # mean slots per KV head that were measured
    scenarios: dict[Scenario, Choice]
    versions: dict[str, str]  # of the packages that computed the evidence

    def choice(self, scenario: str) -> Choice:
        """Returns the choice for a scenario. Raises BudgetError if the recipe has no such scenario."""
        for name, choice in self.scenarios.items():
            if name == scenario:
                return choice
        raise BudgetError(f"the recipe has no scenario {scenario!r}", hint=f"use {' or '.join(self.scenarios)}")

    def save(self, path: Path) -> None:
        """Writes the recipe as JSON, atomically; equal recipes have equal bytes. A `prefill_work` of 1 is left out."""
        write_json(path, self.model_dump(mode="json", exclude_defaults=True))

    @classmethod
    def load(cls, path: Path) -> Recipe:
        """Reads a recipe. Raises DataError if the file is missing, or not a recipe of this format."""
        if not path.is_file():
            raise DataError("no recipe", where=str(path), hint="`sparsemm tune KEY` makes one")
        return read_json(path, cls)

    def show(self) -> str:
        """Returns the recipe as text: the method of each scenario, why, and the evidence."""
        lines = [
            f"recipe of {self.model}, revision {self.revision}",
            f"budgets: {', '.join(map(str, self.budgets))} slots per KV head",
            f"pages: {self.data.dataset}, {self.data.search} of the search and {self.data.confirmation} others for the "
            "evidence",
        ]
        for scenario, choice in self.scenarios.items():
            options = ", ".join(f"{name}={value!r}" for name, value in sorted(choice.options.items()))
            lines += ["", f"{scenario}: {SCENARIOS[scenario]}", f"  {choice.method} ({options})", f"  {choice.why}"]
            for row in choice.evidence:
                if row.method == choice.name and row.budget is None:
                    lines.append(f"  {row.task}: {row.difference.text('+')} against {row.against}, {row.verdict}")
        return "\n".join(lines)


@cache
def _log_once(level: int, message: str) -> None:
    """Logs a message, but only once in a process: a service makes a cache for every request."""
    log.log(level, message)


def automatic(scores: Any, scenario: str, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Returns the method of "auto" and its options: those of the recipe of `scores`, and `options` above them.

    It logs which method this is, every different choice once in a process. A score table without a recipe, or a bare
    matrix, gets the paper's method, with a warning, once for each model. Raises BudgetError if there are no scores, or
    the scenario is unknown.
    """
    if scores is None:
        hint = 'pass scores=sparsemm.load_scores("models:/...@champion"), which brings the recipe along'
        raise BudgetError('method "auto" needs a score table with its recipe', hint=hint)
    if scenario not in get_args(Scenario):
        raise BudgetError(f"scenario {scenario!r} is unknown", hint=f"use {' or '.join(SCENARIOS)}")
    recipe = getattr(scores, "recipe", None)
    if recipe is None:
        what = f"the score table of {scores.header['model']}" if hasattr(scores, "header") else "a matrix of scores"
        how = f"so auto is {PUBLISHED} as published; `sparsemm tune KEY` finds a recipe"
        _log_once(logging.WARNING, f"sparsemm: {what} has no recipe, {how}")
        return PUBLISHED, options
    choice = recipe.choice(scenario)
    options = choice.options | options
    what = f"sparsemm: auto is {choice.name} (question {scenario}) for {recipe.model}, {options}"
    _log_once(logging.INFO, what)
    return choice.method, options
