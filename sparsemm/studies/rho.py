"""The share beyond the window that is split evenly (paper, table 4)."""

from __future__ import annotations

from sparsemm.evaluate.rows import Arm, Row
from sparsemm.params.studies import RhoParams
from sparsemm.studies.bench import Bench
from sparsemm.studies.declaration import Rows, Study, compared, sentence


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
    ways = {
        Arm(task, "", "rho", rho, given.budget): bench.variant("sparsemm", given.budget, rho=rho)
        for task in given.tasks
        for rho in sorted({*given.values, usual})
    }
    return bench.rows(bench.measure(ways), lambda arm: [arm._replace(level=usual)])
