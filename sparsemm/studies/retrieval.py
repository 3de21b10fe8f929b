"""Are the visual heads those that copy text from the prompt, and can they be found without one image?"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

from pydantic import Field

from sparsemm.errors import ScoreTableError
from sparsemm.evaluate.rows import Arm, Row
from sparsemm.params.base import Count
from sparsemm.params.studies import BudgetsParams
from sparsemm.studies import Rows, Study, compared, sentence, spread
from sparsemm.studies.common.agreement import agreement_rows

if TYPE_CHECKING:
    from sparsemm.studies.common.bench import Bench

VISUAL, RETRIEVAL, RANDOM, EVEN = "visual scores", "retrieval scores", "random scores", "even slots"
SEEDS = 3
FEWEST = 0.5  # share of the tokens that a model has to copy itself, or its table says nothing


class RetrievalParams(BudgetsParams):
    """Texts that the model copies."""

    prompts: Count = Field(24, description="texts that it copies")
    words: Count = Field(60, description="of each")


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


def run(bench: Bench, given: RetrievalParams) -> list[Row]:
    """Returns rows of agreement (task "scores"), then of accuracy with budgets from either table.

    A model that copies less than half of the tokens itself has no retrieval scores, and no rows of them.
    """
    from sparsemm.chase.text import chase_text

    model, processor = bench.model, bench.processor
    header = {name: bench.scores.header[name] for name in ("model", "revision")}
    try:
        text = chase_text(model, processor, prompts=given.prompts, words=given.words, header=header)
    except ScoreTableError:
        text = None  # it copies nothing
    if text is not None and text.header["tokens"] < FEWEST * text.header["tokens_copied"]:
        text = None
    rows = agreement_rows(bench, RETRIEVAL, bench.scores, text, bench.params.evaluate.seed) if text else []
    ways: dict[Arm, Any] = {}
    for task, budget in product(given.tasks, given.budgets):
        arm = Arm(task, "", VISUAL, None, budget)
        ways[arm] = bench.variant("sparsemm", budget)
        if text is not None:
            ways[arm._replace(setting=RETRIEVAL)] = bench.variant("sparsemm", budget, text)
        ways[arm._replace(setting=RANDOM)] = [bench.variant("random", budget, seed=i) for i in range(SEEDS)]
        ways[arm._replace(setting=EVEN)] = bench.variant("snapkv", budget)

    def others(arm: Arm) -> list[Arm]:
        names = {RETRIEVAL: (VISUAL, RANDOM, EVEN), VISUAL: (RANDOM, EVEN)}.get(arm.setting, ())
        return [arm._replace(setting=name) for name in names]

    return rows + bench.rows(bench.measure(ways), others)


STUDY = Study(
    params=RetrievalParams,
    run=run,
    title="Visual heads and retrieval heads",
    question="Do scores for copying words from a prompt of text name the same heads, and are budgets from them as good "
    "as those from pages? At equal slots; random scores and even slots show what a wrong table costs.",
    conclusion=conclusion,
    headline=lambda row: row.setting == RETRIEVAL,
)
