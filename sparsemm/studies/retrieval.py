"""Study: are the visual heads those that copy text from the prompt, and can they be found without any image?"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

from pydantic import Field

from sparsemm.errors import ScoreTableError
from sparsemm.evaluate.rows import Arm, Row
from sparsemm.params.strict import Count
from sparsemm.params.studies import BudgetsParams
from sparsemm.studies import Rows, Study, compared, sentence, spread
from sparsemm.studies.common.agreement import agreement_rows

if TYPE_CHECKING:
    from sparsemm.studies.common.experiment import Experiment

VISUAL, RETRIEVAL, RANDOM, EVEN = "visual scores", "retrieval scores", "random scores", "even slots"
SEEDS = 3
FEWEST = 0.5  # share of the tokens that a model has to copy itself, so that its table counts


class RetrievalParams(BudgetsParams):
    """The texts that the model copies."""

    prompts: Count = Field(24, description="number of texts")
    words: Count = Field(60, description="words in each text")


def conclusion(rows: Rows) -> str:
    """Returns how alike the two scores rank the heads, and what budgets from text are worth."""
    ranks = [row.value for row in rows if row.condition == "rank correlation"]
    shared = [row.value for row in rows if row.condition == "top 5 % overlap"]
    against = {
        other: compared(row for row in rows if (row.setting, row.against) == (RETRIEVAL, other))
        for other in (VISUAL, RANDOM, EVEN)
    }
    return sentence(
        "",
        [
            f"Visual and retrieval scores of all heads correlate by {spread(ranks)} (ranks)" if ranks else "",
            f"of the best 5 % of the heads {spread(shared)} are the same" if shared else "",
            *(f"budgets from text against {other}: {words}" for other, words in against.items() if words),
        ],
    )


def run(experiment: Experiment, options: RetrievalParams) -> list[Row]:
    """Returns rows of agreement (task "scores"), then of accuracy with budgets from either table.

    A model that copies less than half of the tokens itself has no retrieval scores, and no rows of them.
    """
    from sparsemm.chase.text import chase_text

    model, processor = experiment.model, experiment.processor
    header = {name: experiment.scores.header[name] for name in ("model", "revision")}
    try:
        text = chase_text(model, processor, prompts=options.prompts, words=options.words, header=header)
    except ScoreTableError:
        text = None  # the model copies nothing
    if text is not None and text.header["tokens"] < FEWEST * text.header["tokens_copied"]:
        text = None
    rows = (
        agreement_rows(experiment, RETRIEVAL, experiment.scores, text, experiment.params.evaluate.seed) if text else []
    )
    arms: dict[Arm, Any] = {}
    for task, budget in product(options.tasks, options.budgets):
        arm = Arm(task, "", VISUAL, None, budget)
        arms[arm] = experiment.variant("sparsemm", budget)
        if text is not None:
            arms[arm._replace(setting=RETRIEVAL)] = experiment.variant("sparsemm", budget, text)
        arms[arm._replace(setting=RANDOM)] = [experiment.variant("random", budget, seed=i) for i in range(SEEDS)]
        arms[arm._replace(setting=EVEN)] = experiment.variant("snapkv", budget)

    def others(arm: Arm) -> list[Arm]:
        names = {RETRIEVAL: (VISUAL, RANDOM, EVEN), VISUAL: (RANDOM, EVEN)}.get(arm.setting, ())
        return [arm._replace(setting=name) for name in names]

    return rows + experiment.rows(experiment.measure(arms), others)


STUDY = Study(
    params=RetrievalParams,
    run=run,
    title="Visual heads and retrieval heads",
    question="Do scores for copying words from a prompt of text name the same heads, and are budgets from them as good "
    "as those from pages? At equal slots; random scores and even slots show what a wrong table costs.",
    conclusion=conclusion,
    headline=lambda row: row.setting == RETRIEVAL,
)
