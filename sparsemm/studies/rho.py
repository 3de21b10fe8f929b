"""The share beyond the window that is split evenly (paper, table 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from sparsemm.evaluate.rows import Arm, Row
from sparsemm.params.base import Count
from sparsemm.params.studies import Share, TasksParams
from sparsemm.studies import Rows, Study, compared, sentence

if TYPE_CHECKING:
    from sparsemm.studies.common.bench import Bench


class RhoParams(TasksParams):
    """The share that is split evenly."""

    values: tuple[Share, ...] = Field(min_length=1)
    budget: Count


def conclusion(rows: Rows) -> str:
    """Every share against the one of `allocate`."""
    parts = []
    for value in sorted({row.level for row in rows if row.verdict and row.level is not None}):
        parts.append(f"{value:g} is {compared(row for row in rows if row.level == value)}")
    usual = next((row.against for row in rows if row.against), "")
    return sentence(f"Against {usual}, rho ", parts)


def run(bench: Bench, given: RhoParams) -> list[Row]:
    """One row per task and rho; each is compared with the rho of `allocate`."""
    usual = bench.params.allocate.rho
    ways = {
        Arm(task, "", "rho", rho, given.budget): bench.variant("sparsemm", given.budget, rho=rho)
        for task in given.tasks
        for rho in sorted({*given.values, usual})
    }
    return bench.rows(bench.measure(ways), lambda arm: [arm._replace(level=usual)])


STUDY = Study(
    params=RhoParams,
    run=run,
    title="How much is split evenly",
    question="rho is the share of the slots beyond the window that all heads get alike; the rest goes by score.",
    conclusion=conclusion,
    headline=lambda row: True,
    level="rho",
)
