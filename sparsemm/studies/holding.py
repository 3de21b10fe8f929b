"""Study: eviction while answering. The budget holds for the answer too, or the cache grows with the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsemm.evaluate.rows import Arm, Row, by_method
from sparsemm.params.studies import MethodsParams
from sparsemm.policies import policy_class
from sparsemm.studies import Rows, Study, compared, sentence

if TYPE_CHECKING:
    from sparsemm.studies.common.experiment import Experiment

GROWS, HELD = "answer kept", "answer evicted too"


def conclusion(rows: Rows) -> str:
    """Says what eviction during the answer costs every method."""
    held = [row for row in rows if row.condition == HELD and row.against == f"{row.setting} ({GROWS})"]
    methods = dict.fromkeys(row.setting for row in held)
    parts = [f"{method} {compared(row for row in held if row.setting == method)}" for method in methods]
    return sentence("Eviction while answering, against a cache that grows with the answer: ", parts)


def run(experiment: Experiment, options: MethodsParams) -> list[Row]:
    """Returns one row per task, budget, method and value of `hold_budget`, compared within a method and with sparsemm.

    Slots and bytes are those after prefill. With `hold_budget` they are also the largest that are ever reached.
    """
    arms = {
        Arm(task, condition, method, None, budget): experiment.variant(method, budget, hold_budget=condition == HELD)
        for task in options.tasks
        for method in options.methods
        if policy_class(method).compresses
        for budget in options.budgets
        for condition in (GROWS, HELD)
    }

    def against(arm: Arm) -> list[Arm]:
        return by_method(arm) + ([arm._replace(condition=GROWS)] if arm.condition == HELD else [])

    return experiment.rows(experiment.measure(arms), against)


STUDY = Study(
    params=MethodsParams,
    run=run,
    title="Eviction while answering",
    question="The budget holds for the answer too: each new token takes the place of the weakest one.",
    conclusion=conclusion,
    headline=lambda row: row.condition == HELD and row.against == f"{row.setting} ({GROWS})",
)
