"""Study: which share of the slots beyond the window should be split evenly? (paper, table 4)"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from sparsemm.evaluate.rows import Arm, Row
from sparsemm.params.strict import Count
from sparsemm.params.studies import Share, TasksParams
from sparsemm.studies import Rows, Study, compared, sentence

if TYPE_CHECKING:
    from sparsemm.studies.common.experiment import Experiment


class RhoParams(TasksParams):
    """The values of rho that are tried."""

    values: tuple[Share, ...] = Field(min_length=1)
    budget: Count


def conclusion(rows: Rows) -> str:
    """Compares every share with that of `allocate`."""
    parts = []
    for value in sorted({row.level for row in rows if row.verdict and row.level is not None}):
        parts.append(f"{value:g} is {compared(row for row in rows if row.level == value)}")
    usual = next((row.against for row in rows if row.against), "")
    return sentence(f"Against {usual}, rho ", parts)


def run(experiment: Experiment, options: RhoParams) -> list[Row]:
    """Returns one row per task and rho, each compared with the rho of `allocate`."""
    usual = experiment.params.allocate.rho
    arms = {
        Arm(task, "", "rho", rho, options.budget): experiment.variant("sparsemm", options.budget, rho=rho)
        for task in options.tasks
        for rho in sorted({*options.values, usual})
    }
    return experiment.rows(experiment.measure(arms), lambda arm: [arm._replace(level=usual)])


STUDY = Study(
    params=RhoParams,
    run=run,
    title="How much is split evenly",
    question="rho is the share of the slots beyond the window that is split evenly; the rest follows the scores.",
    conclusion=conclusion,
    headline=lambda row: True,
    level="rho",
)
