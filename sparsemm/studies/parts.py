"""Study: the parts of a budget (paper, table 2). The window alone, with the uniform part, and with the score part."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsemm.evaluate.rows import Arm, Row
from sparsemm.params.studies import BudgetsParams
from sparsemm.studies import Rows, Study, compared, sentence

if TYPE_CHECKING:
    from sparsemm.studies.common.experiment import Experiment

WINDOW, UNIFORM, ALL = "window", "window + uniform", "window + uniform + score"


def conclusion(rows: Rows) -> str:
    """Compares slots by score with even slots, and even slots with the window alone."""
    by_score = compared(row for row in rows if (row.setting, row.against) == (ALL, UNIFORM))
    evenly = compared(row for row in rows if (row.setting, row.against) == (UNIFORM, WINDOW))
    return sentence(
        "",
        [
            f"Slots by score against slots shared evenly: {by_score}" if by_score else "",
            f"slots shared evenly against the newest tokens alone: {evenly}" if evenly else "",
        ],
    )


def run(experiment: Experiment, options: BudgetsParams) -> list[Row]:
    """Returns one row per task, budget, set of parts and comparison.

    Every arm has B slots per head on average. The window alone is the B newest tokens. With the uniform part, the slots
    beyond `allocate.window` are shared evenly, which is rho = 1. With all parts it is `sparsemm`.
    """
    arms = {}
    for task in options.tasks:
        for budget in options.budgets:
            arms[Arm(task, "", WINDOW, None, budget)] = experiment.variant("snapkv", budget, window=budget)
            arms[Arm(task, "", UNIFORM, None, budget)] = experiment.variant("sparsemm", budget, rho=1.0)
            arms[Arm(task, "", ALL, None, budget)] = experiment.variant("sparsemm", budget)
    before = {WINDOW: [], UNIFORM: [WINDOW], ALL: [UNIFORM, WINDOW]}
    return experiment.rows(
        experiment.measure(arms), lambda arm: [arm._replace(setting=other) for other in before[arm.setting]]
    )


STUDY = Study(
    params=BudgetsParams,
    run=run,
    title="What each part of a budget gives",
    question="At equal slots: the newest tokens alone, with slots shared evenly, and with slots by score.",
    conclusion=conclusion,
    headline=lambda row: (row.setting, row.against) in ((ALL, UNIFORM), (UNIFORM, WINDOW)),
)
