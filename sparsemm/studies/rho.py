"""The share beyond the window that is split evenly (paper, table 4)."""

from __future__ import annotations

from sparsemm.params.studies import RhoParams
from sparsemm.studies.bench import Bench
from sparsemm.studies.declaration import Rows, Study, compared, sentence
from sparsemm.studies.rows import Arm, Outcome, Row


def conclusion(rows: Rows) -> str:
    """Every share against the one of `allocate`."""
    parts = []
    for value in sorted({row.level for row in rows if row.verdict and row.level is not None}):
        parts.append(f"{value:g} is {compared(row for row in rows if row.level == value)}")
    usual = next((row.against for row in rows if row.against), "")
    return sentence(f"Against {usual}, rho ", parts)


STUDY = Study(
    title="How much is split evenly",
    question="rho is the share of the slots beyond the window that all heads get alike; the rest goes by score.",
    conclusion=conclusion,
    headline=lambda row: True,
    level="rho",
)


def run(bench: Bench, given: RhoParams) -> list[Row]:
    """One row per task and rho; each is compared with the rho of `allocate`."""
    usual = bench.params.allocate.rho
    values = sorted({*given.values, usual})
    outcomes: dict[Arm, Outcome] = {}
    for task in given.tasks:
        ways = {f"{rho:g}": bench.kept("sparsemm", given.budget, rho=rho) for rho in values}
        said = bench.keep(task, task, ways)
        outcomes |= {Arm(task, "", "rho", rho, given.budget): said[f"{rho:g}"] for rho in values}
    return bench.rows(outcomes, lambda arm: [arm._replace(level=usual)])
