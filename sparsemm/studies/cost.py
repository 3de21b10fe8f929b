"""Accuracy and latency together at one budget (paper, table 3), from the evaluate and profile stages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsemm.errors import DataError
from sparsemm.evaluate.rows import COLUMNS, Arm, Outcome, Row, by_method
from sparsemm.params.studies import StudyParams
from sparsemm.studies import Rows, Study, compared, sentence, spread

if TYPE_CHECKING:
    from sparsemm.evaluate.samples import Evaluated
    from sparsemm.params import Params

TIMES = {"decode_ms_per_token": "ms a token", "decode_ratio_to_full": "times transformers", "kept_bytes": "bytes held"}


class CostParams(StudyParams):
    """Accuracy and latency at the profiled budget, which has to be evaluated too."""

    def problem(self, params: Params) -> str | None:
        """What does not fit the other parts of params.yaml, or None."""
        budget = params.profile.budget
        if budget not in params.allocate.budgets:
            return f"profile.budget {budget} is not under allocate.budgets"
        return super().problem(params)


def conclusion(rows: Rows) -> str:
    """What sparsemm loses against the full cache, and what a token costs."""
    own = [row for row in rows if row.of_sparsemm]
    times = [row for row in own if row.condition == TIMES["decode_ratio_to_full"] and row.level is not None]
    longest = max((row.level for row in times if row.level is not None), default=None)
    ratios = [row.value for row in times if row.level == longest]
    lost = compared(row for row in own if row.against_full)
    return sentence(
        "At the profiled budget ",
        [
            f"the accuracy of sparsemm against the full cache is {lost}" if lost else "",
            f"a token after {longest:g} tokens takes {spread(ratios)} times as long as with transformers' full cache"
            if ratios
            else "",
        ],
    )


def run(evaluated: Evaluated, given: CostParams) -> list[Row]:
    """Rows of accuracy per task and method at `profile.budget`; then of what the clock said, level the prompt length.

    Times have no interval: the profile stage gives medians.

    Raises:
        DataError: if a table is missing or malformed, or no profiled method was evaluated at the budget.
    """
    from sparsemm.evaluate.samples import HINT, read_table

    key, budget = evaluated.key, evaluated.params.profile.budget
    samples, kept = evaluated.samples, evaluated.kept
    times = read_table(evaluated.root, "profile", key, ("method", "budget", "prompt_length", *TIMES))
    timed = {(row["method"], row["budget"]) for row in times}
    outcomes: dict[Arm, Outcome] = {}
    for way in samples.values:
        task, method, at = way
        if (method, "" if at is None else str(at)) in timed and at in (budget, None):
            slots, size = kept.get(way, (None, None))
            outcomes[Arm(task, "", method, None, at)] = samples.outcome(way, kept=slots, bytes=size)
    if not any(arm.budget == budget for arm in outcomes):
        raise DataError(f"nothing was evaluated and profiled at B = {budget}", where=f"cost {key}", hint=HINT)
    rows = evaluated.rows(outcomes, by_method)
    return rows + [_timing(key, row, column) for row in times for column in TIMES]


def _timing(key: str, row: dict[str, str], column: str) -> Row:
    made: Row = dict.fromkeys(COLUMNS, "") | {"model": key, "study": "cost", "task": "profile"}
    made |= {"condition": TIMES[column], "setting": row["method"], "metric": TIMES[column]}
    try:
        made |= {"level": int(row["prompt_length"]), "value": float(row[column])}
        return made | {"budget": int(row["budget"]) if row["budget"] else ""}
    except ValueError as error:
        raise DataError(
            f"not a number: {error}", where=f"artifacts/profile/{key}.csv", hint="run its stage again"
        ) from error


STUDY = Study(
    params=CostParams,
    run=run,
    group="derived",
    title="Accuracy and latency together",
    question="Both at the profiled budget. Times are medians and have no interval.",
    conclusion=conclusion,
    headline=lambda row: row.of_sparsemm and row.against_full,
    level="prompt length, tokens",
)
