"""Eviction while answering: the budget holds for the answer too, against a cache that grows with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsemm.evaluate.rows import Arm, Row, by_method
from sparsemm.params.studies import MethodsParams
from sparsemm.policies import policy_class
from sparsemm.studies import Rows, Study, compared, sentence

if TYPE_CHECKING:
    from sparsemm.studies.common.bench import Bench

GROWS, HELD = "answer kept", "answer evicted too"


def conclusion(rows: Rows) -> str:
    """What eviction during the answer costs every method."""
    held = [row for row in rows if row.condition == HELD and row.against == f"{row.setting} ({GROWS})"]
    methods = dict.fromkeys(row.setting for row in held)
    parts = [f"{method} {compared(row for row in held if row.setting == method)}" for method in methods]
    return sentence("Eviction while answering, against a cache that grows with the answer: ", parts)


def run(bench: Bench, given: MethodsParams) -> list[Row]:
    """One row per task, budget, method and whether `hold_budget` is set; compared within a method, and with sparsemm.

    Slots and bytes are those after prefill; with `hold_budget` they are the most there ever is.
    """
    ways = {
        Arm(task, condition, method, None, budget): bench.variant(method, budget, hold_budget=condition == HELD)
        for task in given.tasks
        for method in given.methods
        if policy_class(method).compresses
        for budget in given.budgets
        for condition in (GROWS, HELD)
    }

    def against(arm: Arm) -> list[Arm]:
        return by_method(arm) + ([arm._replace(condition=GROWS)] if arm.condition == HELD else [])

    return bench.rows(bench.measure(ways), against)


STUDY = Study(
    params=MethodsParams,
    run=run,
    title="Eviction while answering",
    question="The budget holds for the answer too: each new token takes the place of the weakest one.",
    conclusion=conclusion,
    headline=lambda row: row.condition == HELD and row.against == f"{row.setting} ({GROWS})",
)
