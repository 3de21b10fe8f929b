"""The parts of a budget: window alone, with the uniform part, with the score part (paper, table 2), at equal slots."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsemm.evaluate.rows import Arm, Row
from sparsemm.params.studies import BudgetsParams
from sparsemm.studies import Rows, Study, compared, sentence

if TYPE_CHECKING:
    from sparsemm.studies.common.bench import Bench

WINDOW, UNIFORM, ALL = "window", "window + uniform", "window + uniform + score"


def conclusion(rows: Rows) -> str:
    """What slots by score give over even slots, and even slots over the window alone."""
    by_score = compared(row for row in rows if (row.setting, row.against) == (ALL, UNIFORM))
    evenly = compared(row for row in rows if (row.setting, row.against) == (UNIFORM, WINDOW))
    return sentence(
        "",
        [
            f"Slots by score against slots shared evenly: {by_score}" if by_score else "",
            f"slots shared evenly against the newest tokens alone: {evenly}" if evenly else "",
        ],
    )


def run(bench: Bench, given: BudgetsParams) -> list[Row]:
    """One row per task, budget, set of parts and comparison.

    Every arm has B slots a head on average. The window alone is B newest tokens; with the uniform part the slots beyond
    `allocate.window` are shared evenly, which is rho = 1; with all parts it is `sparsemm`.
    """
    ways = {}
    for task in given.tasks:
        for budget in given.budgets:
            ways[Arm(task, "", WINDOW, None, budget)] = bench.variant("snapkv", budget, window=budget)
            ways[Arm(task, "", UNIFORM, None, budget)] = bench.variant("sparsemm", budget, rho=1.0)
            ways[Arm(task, "", ALL, None, budget)] = bench.variant("sparsemm", budget)
    before = {WINDOW: [], UNIFORM: [WINDOW], ALL: [UNIFORM, WINDOW]}
    return bench.rows(bench.measure(ways), lambda arm: [arm._replace(setting=other) for other in before[arm.setting]])


STUDY = Study(
    params=BudgetsParams,
    run=run,
    title="What each part of a budget gives",
    question="At equal slots: the newest tokens alone, with slots shared evenly, and with slots by score.",
    conclusion=conclusion,
    headline=lambda row: (row.setting, row.against) in ((ALL, UNIFORM), (UNIFORM, WINDOW)),
)
