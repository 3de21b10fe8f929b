"""Study: how much visual and non-visual heads look at the word that is about to be said (paper, figures 10 and 11)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from sparsemm.errors import DataError
from sparsemm.evaluate.rows import Arm, Outcome, Row
from sparsemm.params.studies import PagesParams
from sparsemm.scores import ScoreTable, top_count
from sparsemm.studies import Rows, Study, sentence, spread

if TYPE_CHECKING:
    from sparsemm.datasets.records import Record
    from sparsemm.studies.common.experiment import Experiment

WORD, PAGE = "on the word", "on the page"
BEST, MIDDLE, LAST = "best heads", "middle heads", "last heads"


class LookingParams(PagesParams):
    """The size of the groups of heads."""

    share: float = Field(0.05, gt=0.0, le=1.0, description="share of all heads in each group")


def shares(experiment: Experiment, record: Record) -> list[list[list[float]]] | None:
    """Returns the attention on the word about to be said and on the page, (L, Hq, 2), averaged over the answer's words.

    It is None if the model reads none of the page's words.
    """
    from sparsemm.align.stage import greedy_answers
    from sparsemm.studies.common.watch import watched

    most = experiment.params.evaluate.max_new_tokens
    (answer,) = greedy_answers(experiment.model, experiment.processor, [record], experiment.params.chase.prompt, most)
    watch = watched(experiment, record, answer)
    return None if watch is None else [watch.shares[layer].tolist() for layer in sorted(watch.shares)]


def groups(table: ScoreTable, share: float) -> dict[str, NDArray[np.int64]]:
    """Returns flat indices of the best heads, of as many in the middle of the ranking, and of the last.

    Only layers that have heads are counted.
    """
    scores = table.scores[table.layers_with_heads()]
    count = top_count(scores.size, share)
    order = np.argsort(-scores.ravel(), kind="stable")
    middle = (len(order) - count) // 2
    return {BEST: order[:count], MIDDLE: order[middle : middle + count], LAST: order[len(order) - count :]}


def conclusion(rows: Rows) -> str:
    """Says how much of their attention each group of heads gives to the word about to be said."""
    parts = []
    for group in (BEST, MIDDLE, LAST):
        values = {row.model: row.value for row in rows if (row.condition, row.setting) == (WORD, group)}
        parts += [f"{group} {spread(list(values.values()))}"] if values else []
    return sentence("Share of the attention on the word about to be said: ", [", ".join(parts)])


def run(experiment: Experiment, options: LookingParams) -> list[Row]:
    """Returns one row per group of heads and place (the word or the page): the share of their attention on it.

    Raises:
        DataError: if the model reads words of fewer than two pages.
    """
    by_page = [
        experiment.store.once(f"page-{number}", partial(shares, experiment, record))
        for number, record in enumerate(experiment.records)
    ]
    pages = [one for one in by_page if one is not None]
    if len(pages) < 2:
        raise DataError(f"the model reads words of {len(pages)} pages", where=f"{experiment.study} {experiment.key}")
    attention = np.array(pages, dtype=np.float64).reshape(len(pages), -1, 2)  # (pages, L * Hq, 2)
    outcomes = {
        Arm("read", where, group): Outcome(attention[:, heads, i].mean(axis=1), "share of the attention")
        for i, where in enumerate((WORD, PAGE))
        for group, heads in groups(experiment.scores, options.share).items()
    }
    return experiment.rows(
        outcomes, lambda arm: [arm._replace(setting=o) for o in (MIDDLE, LAST)] if arm.setting == BEST else []
    )


STUDY = Study(
    params=LookingParams,
    run=run,
    title="What visual and other heads look at",
    question="Share of a head's attention on the word about to be said and on the page: of the best heads by score, of"
    " heads in the middle of the ranking, and of the last ones.",
    conclusion=conclusion,
    headline=lambda row: (row.condition, row.setting) == (WORD, BEST),
)
