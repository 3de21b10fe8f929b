"""Do other pages rank the heads alike, and do their budgets serve as well? (paper, figures 8 and 9)"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsemm.errors import ScoreTableError
from sparsemm.evaluate.rows import Arm, Row
from sparsemm.files import result_path
from sparsemm.params.studies import BudgetsParams
from sparsemm.scores import ScoreTable
from sparsemm.studies import Rows, Study, compared, sentence, spread
from sparsemm.studies.common.agreement import agreement_rows

if TYPE_CHECKING:
    from sparsemm.params import Params
    from sparsemm.studies.common.bench import Bench

OWN, EVEN, ODD, RANDOM = "own", "even pages", "odd pages", "random"
SEEDS = 3


class SourcesParams(BudgetsParams):
    """Tables of other data sets, with which there is something to compare only if there are any."""

    def problem(self, params: Params) -> str | None:
        """What does not fit the other parts of params.yaml, or None."""
        if not params.robustness:
            return "no table to compare with: name a data set under robustness, or leave it out"
        return super().problem(params)


def half(table: ScoreTable, first: int) -> ScoreTable:
    """The table of every second sample from `first` on: the control for what other pages of the same kind change."""
    return ScoreTable.from_samples(table.per_sample[first::2], np.zeros_like(table.hits), table.header)


def conclusion(rows: Rows) -> str:
    """How alike tables rank the heads, and what another data set's budgets cost."""
    ranks = [row for row in rows if row.condition == "rank correlation"]
    halves = [row.value for row in ranks if row.setting == f"{EVEN} and {ODD}"]
    others = [row.value for row in ranks if row.setting != f"{EVEN} and {ODD}"]
    budgets = compared(row for row in rows if row.against == OWN and row.setting not in (EVEN, ODD, RANDOM))
    return sentence(
        "",
        [
            f"Ranks of all heads correlate by {spread(halves)} between halves of the calibration set" if halves else "",
            f"by {spread(others)} with other data sets" if others else "",
            f"budgets from other data sets against their own: {budgets}" if budgets else "",
        ],
    )


def run(bench: Bench, given: SourcesParams) -> list[Row]:
    """Rows of agreement (task "scores"), then of accuracy with the budgets of every table, against those of its own.

    Raises:
        ScoreTableError: if a table of `robustness` is missing, damaged or of another model.
    """
    own = bench.scores
    others = {dataset: _table(bench, dataset) for dataset in sorted(bench.params.robustness)}
    tables = {EVEN: half(own, 0), ODD: half(own, 1)} | others
    seed = bench.params.evaluate.seed
    rows = agreement_rows(bench, f"{EVEN} and {ODD}", tables[EVEN], tables[ODD], seed)
    for name, table in others.items():
        rows += agreement_rows(bench, name, own, table, seed)
    ways: dict[Arm, Any] = {}
    for task, budget in product(given.tasks, given.budgets):
        arm = Arm(task, "", OWN, None, budget)
        ways[arm] = bench.variant("sparsemm", budget)
        ways |= {arm._replace(setting=name): bench.variant("sparsemm", budget, one) for name, one in tables.items()}
        ways[arm._replace(setting=RANDOM)] = [bench.variant("random", budget, seed=i) for i in range(SEEDS)]
    return rows + bench.rows(bench.measure(ways), lambda arm: [arm._replace(setting=OWN)])


def _table(bench: Bench, dataset: str) -> ScoreTable:
    path = result_path(bench.root, "scores", bench.key, ".safetensors", dataset)
    if not path.is_file():
        hint = f"run `sparsemm chase {bench.key} --dataset {dataset}`"
        raise ScoreTableError("no score table", where=str(path), hint=hint)
    table = ScoreTable.load(path)
    table.check_model(bench.scores.header["fingerprint"])
    return table


STUDY = Study(
    params=SourcesParams,
    run=run,
    group="compared",
    title="Scores from other pages",
    question="Do other data sets rank the heads alike, and do their budgets serve as well? Halves of the calibration "
    "set show what other pages of the same kind change; random scores show what a wrong table costs.",
    conclusion=conclusion,
    headline=lambda row: row.against == OWN,
)
