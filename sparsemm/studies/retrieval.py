"""Study: are the visual heads those that copy text from the prompt, and can they be found without any image?"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

from pydantic import Field

from sparsemm.errors import ScoreTableError
from sparsemm.evaluate.rows import Arm, Row
from sparsemm.params.strict import Count
from sparsemm.params.studies import BudgetsParams
from sparsemm.scores import ScoreTable
from sparsemm.studies import Rows, Study, compared, sentence, spread
from sparsemm.studies.common.agreement import agreement_rows

if TYPE_CHECKING:
    from sparsemm.studies.common.experiment import Experiment

VISUAL, RETRIEVAL, RANDOM, EVEN = "visual scores", "retrieval scores", "random scores", "even slots"
BEFORE = "retrieval scores before tuning"
SEEDS = 3
FEWEST = 0.5  # share of the tokens that a model has to copy itself, so that its table counts


class RetrievalParams(BudgetsParams):
    """The texts that the model copies."""

    prompts: Count = Field(24, description="number of texts")
    words: Count = Field(60, description="words in each text")


def conclusion(rows: Rows) -> str:
    """Returns how alike the scores rank the heads, and what budgets from text are worth."""
    parts = []
    for setting in (RETRIEVAL, BEFORE):
        own = [row for row in rows if row.setting == setting]
        ranks = [row.value for row in own if row.condition == "rank correlation"]
        shared = [row.value for row in own if row.condition == "top 5 % overlap"]
        parts += [f"Visual scores and {setting} of all heads correlate by {spread(ranks)} (ranks)"] if ranks else []
        parts += [f"of the best 5 % of the heads {spread(shared)} are the same"] if shared else []
        for other in (VISUAL, RANDOM, EVEN):
            verdicts = compared(row for row in own if row.against == other)
            parts += [f"budgets from {setting} against {other}: {verdicts}"] if verdicts else []
    return sentence("", parts)


def run(experiment: Experiment, options: RetrievalParams) -> list[Row]:
    """Returns rows of agreement (task "scores"), then of accuracy with budgets from each table.

    A model that copies less than half of the tokens itself has no retrieval scores, and no rows of them. For an
    assembled checkpoint there are those of its language model before tuning as well, from the same prompts.

    Raises:
        ModelError: if the language model before tuning cannot be read.
    """
    from sparsemm.assemble.stage import language_model_before

    before = language_model_before(experiment.params, experiment.key, experiment.root)
    models = {RETRIEVAL: experiment.model} | ({BEFORE: before} if before is not None else {})
    scored = {setting: _text_scores(experiment, options, model) for setting, model in models.items()}
    tables = {setting: table for setting, table in scored.items() if table is not None}
    rows = []
    for setting, table in tables.items():
        rows += agreement_rows(experiment, setting, experiment.scores, table, experiment.params.evaluate.seed)
    arms: dict[Arm, Any] = {}
    for task, budget in product(options.tasks, options.budgets):
        arm = Arm(task, "", VISUAL, None, budget)
        arms[arm] = experiment.variant("sparsemm", budget)
        for setting, table in tables.items():
            arms[arm._replace(setting=setting)] = experiment.variant("sparsemm", budget, table)
        arms[arm._replace(setting=RANDOM)] = [experiment.variant("random", budget, seed=i) for i in range(SEEDS)]
        arms[arm._replace(setting=EVEN)] = experiment.variant("snapkv", budget)

    def others(arm: Arm) -> list[Arm]:
        names = {VISUAL: (RANDOM, EVEN)} | dict.fromkeys(tables, (VISUAL, RANDOM, EVEN))
        return [arm._replace(setting=name) for name in names.get(arm.setting, ())]

    return rows + experiment.rows(experiment.measure(arms), others)


def _text_scores(experiment: Experiment, options: RetrievalParams, model: Any) -> ScoreTable | None:
    """Returns the scores of a model's heads while it copies text, or None if it copies too little."""
    from sparsemm.chase.text import chase_text

    # The heads that are scored before the tuning are those of this model, so the table is one of this model.
    header = {name: experiment.scores.header[name] for name in ("model", "revision", "fingerprint")}
    try:
        table = chase_text(model, experiment.processor, prompts=options.prompts, words=options.words, header=header)
    except ScoreTableError:
        return None  # it copies nothing
    return None if table.header["tokens"] < FEWEST * table.header["tokens_copied"] else table


STUDY = Study(
    params=RetrievalParams,
    run=run,
    title="Visual heads and retrieval heads",
    question="Do scores for copying words from a prompt of text name the same heads, and are budgets from them as good "
    "as those from pages? At equal slots; random scores and even slots show what a wrong table costs.",
    conclusion=conclusion,
    headline=lambda row: row.setting in (RETRIEVAL, BEFORE),
)
