"""Study: a method that docs/results.md named before it was measured, on pages that no other table used."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

from pydantic import Field

from sparsemm.evaluate.rows import Arm, Row
from sparsemm.params.stages import Method
from sparsemm.params.studies import MethodsParams
from sparsemm.policies import budgets_of, is_drawn
from sparsemm.studies import Rows, Study, against_each, sentence

if TYPE_CHECKING:
    from sparsemm.studies.common.experiment import Experiment

SEEDS = 3  # random draws of a method that draws heads


class RegisteredParams(MethodsParams):
    """The method that was named, what it is compared with, and the pages."""

    candidate: Method = Field(description="method that was registered")
    first: int = Field(0, ge=0, description="number of the first page; `samples` is that behind the last one")

    def problem(self, params: Any) -> str | None:
        """Returns what does not fit the other parts of params.yaml, or None."""
        if self.samples - self.first < 2:
            return f"pages {self.first} to {self.samples} are fewer than two"
        return super().problem(params)


def conclusion(rows: Rows) -> str:
    """Returns how the registered method compares with each of the others, by task."""
    parts = [
        f"{task}: {', '.join(against_each([row for row in rows if row.task == task and row.verdict]))}"
        for task in dict.fromkeys(row.task for row in rows if row.verdict)
    ]
    names = "/".join(dict.fromkeys(row.setting for row in rows if row.verdict))
    return sentence(f"{names} against each method, ", parts)


def run(experiment: Experiment, options: RegisteredParams) -> list[Row]:
    """Returns one row per task, method and budget; the registered method is compared with all others."""
    pages = slice(options.first, options.samples)
    methods = dict.fromkeys([options.candidate, *options.methods])
    variants: dict[Arm, Any] = {}
    for task, method in product(options.tasks, methods):
        for budget in budgets_of(method, options.budgets):
            draws = range(SEEDS) if is_drawn(method) else (experiment.params.evaluate.seed,)
            ways = [experiment.variant(method, budget, seed=seed) for seed in draws]
            variants[Arm(task, "", method, None, budget)] = ways if len(ways) > 1 else ways[0]

    def others(arm: Arm) -> list[Arm]:
        if arm.setting != options.candidate:
            return []
        budgets = {method: budgets_of(method, options.budgets) for method in methods}
        return [
            arm._replace(setting=method, budget=arm.budget if arm.budget in own else None)
            for method, own in budgets.items()
        ]

    return experiment.rows(experiment.measure(variants, pages=pages), others)


STUDY = Study(
    params=RegisteredParams,
    run=run,
    title="Registered beforehand",
    question="One method was named in docs/results.md, with a claim about it, before it was measured on these pages, "
    "which no other table of the model used.",
    conclusion=conclusion,
    headline=lambda row: bool(row.against),
)
