"""Study: do other pages rank the heads the same way, and are their budgets as good? (paper, figures 8 and 9)"""

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
    from sparsemm.studies.common.experiment import Experiment

OWN, EVEN, ODD, RANDOM = "own", "even pages", "odd pages", "random"
SEEDS = 3


class SourcesParams(BudgetsParams):
    """The budgets; there has to be a data set under `robustness`."""

    def problem(self, params: Params) -> str | None:
        """Returns what does not fit the other parts of params.yaml, or None."""
        if not params.robustness:
            return "no table to compare with: name a data set under robustness, or leave it out"
        return super().problem(params)


def half(table: ScoreTable, first: int) -> ScoreTable:
    """Returns the table of every second sample from `first` on, a control for other pages of the same kind."""
    return ScoreTable.from_samples(table.per_sample[first::2], np.zeros_like(table.hits), table.header)


def conclusion(rows: Rows) -> str:
    """Says how far the tables agree, and what another data set's budgets cost."""
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


def run(experiment: Experiment, options: SourcesParams) -> list[Row]:
    """Returns rows of agreement (task "scores"), then of accuracy with the budgets of every table.

    Raises:
        ScoreTableError: if a table of `robustness` is missing, damaged or of another model.
    """
    own = experiment.scores
    others = {dataset: _table(experiment, dataset) for dataset in sorted(experiment.params.robustness)}
    tables = {EVEN: half(own, 0), ODD: half(own, 1)} | others
    seed = experiment.params.evaluate.seed
    rows = agreement_rows(experiment, f"{EVEN} and {ODD}", tables[EVEN], tables[ODD], seed)
    for name, table in others.items():
        rows += agreement_rows(experiment, name, own, table, seed)
    arms: dict[Arm, Any] = {}
    for task, budget in product(options.tasks, options.budgets):
        arm = Arm(task, "", OWN, None, budget)
        arms[arm] = experiment.variant("sparsemm", budget)
        arms |= {
            arm._replace(setting=name): experiment.variant("sparsemm", budget, one) for name, one in tables.items()
        }
        arms[arm._replace(setting=RANDOM)] = [experiment.variant("random", budget, seed=i) for i in range(SEEDS)]
    return rows + experiment.rows(experiment.measure(arms), lambda arm: [arm._replace(setting=OWN)])


def _table(experiment: Experiment, dataset: str) -> ScoreTable:
    path = result_path(experiment.root, "scores", experiment.key, ".safetensors", dataset)
    if not path.is_file():
        hint = f"run `sparsemm chase {experiment.key} --dataset {dataset}`"
        raise ScoreTableError("no score table", where=str(path), hint=hint)
    table = ScoreTable.load(path)
    table.check_model(experiment.scores.header["fingerprint"])
    return table


STUDY = Study(
    params=SourcesParams,
    run=run,
    group="compared",
    title="Scores from other pages",
    question="Do other data sets rank the heads the same way, and are their budgets as good? Halves of the calibration "
    "set show what other pages of the same kind change; random scores show what a wrong table costs.",
    conclusion=conclusion,
    headline=lambda row: row.against == OWN,
)
