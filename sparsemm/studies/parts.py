"""The parts of a budget: window alone, with the uniform part, with the score part (paper, table 2), at equal slots."""

from __future__ import annotations

from sparsemm.params.studies import BudgetedParams
from sparsemm.studies.bench import Bench
from sparsemm.studies.declaration import Rows, Study, compared, sentence
from sparsemm.studies.rows import Arm, Outcome, Row

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


STUDY = Study(
    title="What each part of a budget gives",
    question="At equal slots: the newest tokens alone, with slots shared evenly, and with slots by score.",
    conclusion=conclusion,
    headline=lambda row: (row.setting, row.against) in ((ALL, UNIFORM), (UNIFORM, WINDOW)),
)


def run(bench: Bench, given: BudgetedParams) -> list[Row]:
    """One row per task, budget, set of parts and comparison.

    Every arm has B slots a head on average. The window alone is B newest tokens; with the uniform part the slots beyond
    `allocate.window` are shared evenly, which is rho = 1; with all parts it is `sparsemm`.
    """
    outcomes: dict[Arm, Outcome] = {}
    for task in given.tasks:
        ways = {}
        for budget in given.budgets:
            ways[f"{WINDOW} {budget}"] = bench.kept("snapkv", budget, window=budget)
            ways[f"{UNIFORM} {budget}"] = bench.kept("sparsemm", budget, rho=1.0)
            ways[f"{ALL} {budget}"] = bench.kept("sparsemm", budget)
        said = bench.keep(task, task, ways)
        for budget in given.budgets:
            outcomes |= {Arm(task, "", s, None, budget): said[f"{s} {budget}"] for s in (WINDOW, UNIFORM, ALL)}
    before = {WINDOW: [], UNIFORM: [WINDOW], ALL: [UNIFORM, WINDOW]}
    return bench.rows(outcomes, lambda arm: [arm._replace(setting=other) for other in before[arm.setting]])
