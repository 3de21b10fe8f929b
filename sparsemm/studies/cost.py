"""Study: accuracy and latency together at one budget (paper, table 3), from the evaluate and profile stages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsemm.errors import DataError
from sparsemm.evaluate.rows import COLUMNS, Arm, Outcome, Row, by_method
from sparsemm.params.studies import StudyParams
from sparsemm.studies import Rows, Study, compared, sentence, spread

if TYPE_CHECKING:
    from sparsemm.params import Params
    from sparsemm.studies.common.evaluated import Evaluated, Timed

TIMES = {"decode_ms_per_token": "ms a token", "decode_ratio_to_full": "times transformers", "kept_bytes": "bytes held"}


class CostParams(StudyParams):
    """The budget is `profile.budget`, which has to be evaluated too."""

    def problem(self, params: Params) -> str | None:
        """Returns what does not fit the other parts of params.yaml, or None."""
        budget = params.profile.budget
        if budget not in params.allocate.budgets:
            return f"profile.budget {budget} is not under allocate.budgets"
        return super().problem(params)


def conclusion(rows: Rows) -> str:
    """Says what sparsemm loses against the full cache, and how long a token takes."""
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


def run(evaluated: Evaluated, options: CostParams) -> list[Row]:
    """Returns rows of accuracy per task and method at `profile.budget`, then rows of times, by prompt length.

    Times have no interval, because the profile stage gives medians.

    Raises:
        DataError: if a table is missing or malformed, or no profiled method was evaluated at the budget.
    """
    key, budget = evaluated.key, evaluated.params.profile.budget
    samples, kept = evaluated.samples, evaluated.kept
    timed = {(row.method, row.budget) for row in evaluated.timings}
    outcomes: dict[Arm, Outcome] = {}
    for way in samples.values:
        task, method, at = way
        if (method, at) in timed and at in (budget, None):
            slots, size = kept.get(way, (None, None))
            outcomes[Arm(task, "", method, None, at)] = samples.outcome(way, kept=slots, bytes=size)
    if not any(arm.budget == budget for arm in outcomes):
        raise DataError(
            f"nothing was evaluated and profiled at B = {budget}", where=f"cost {key}", hint="run its stage again"
        )
    rows = evaluated.rows(outcomes, by_method)
    return rows + [_timing(key, row, column) for row in evaluated.timings for column in TIMES]


def _timing(key: str, timed: Timed, column: str) -> Row:
    row: Row = dict.fromkeys(COLUMNS, "") | {"model": key, "study": "cost", "task": "profile"}
    row |= {"condition": TIMES[column], "setting": timed.method, "metric": TIMES[column]}
    row |= {"level": timed.prompt_length, "value": getattr(timed, column)}
    return row | {"budget": "" if timed.budget is None else timed.budget}


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
