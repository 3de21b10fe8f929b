"""How much visual and non-visual heads look at the word that is about to be said (paper, figures 10 and 11)."""

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
    from sparsemm.studies.common.bench import Bench

WORD, PAGE = "on the word", "on the page"
BEST, MIDDLE, LAST = "best heads", "middle heads", "last heads"


class LookingParams(PagesParams):
    """How much heads look at the word that is said."""

    share: float = Field(0.05, gt=0.0, le=1.0, description="of all heads in each group")


def shares(bench: Bench, record: Record) -> list[list[list[float]]] | None:
    """Attention on the word about to be said and on the page, (L, Hq, 2), mean over the answer's tokens on the page.

    None if the model reads none of the page's words.
    """
    from sparsemm.align.stage import greedy_answers
    from sparsemm.studies.common.watch import watched

    most = bench.params.evaluate.max_new_tokens
    (answer,) = greedy_answers(bench.model, bench.processor, [record], bench.params.chase.prompt, most)
    watch = watched(bench, record, answer)
    return None if watch is None else [watch.shares[layer].tolist() for layer in sorted(watch.shares)]


def groups(table: ScoreTable, share: float) -> dict[str, NDArray[np.int64]]:
    """Flat indices, among the layers that have heads, of the best ones, as many around the median, and of the last."""
    scores = table.scores[table.layers_with_heads()]
    count = top_count(scores.size, share)
    order = np.argsort(-scores.ravel(), kind="stable")
    middle = (len(order) - count) // 2
    return {BEST: order[:count], MIDDLE: order[middle : middle + count], LAST: order[len(order) - count :]}


def conclusion(rows: Rows) -> str:
    """How much of their attention each group of heads gives to the word about to be said."""
    parts = []
    for group in (BEST, MIDDLE, LAST):
        values = {row.model: row.value for row in rows if (row.condition, row.setting) == (WORD, group)}
        parts += [f"{group} {spread(list(values.values()))}"] if values else []
    return sentence("Share of the attention on the word about to be said: ", [", ".join(parts)])


def run(bench: Bench, given: LookingParams) -> list[Row]:
    """One row per group of heads, and per where they look: the share of their attention, a value for every page.

    Raises:
        DataError: if the model reads words of fewer than two pages.
    """
    found = [
        bench.store.once(f"page-{number}", partial(shares, bench, record))
        for number, record in enumerate(bench.records)
    ]
    pages = [one for one in found if one is not None]
    if len(pages) < 2:
        raise DataError(f"the model reads words of {len(pages)} pages", where=f"{bench.study} {bench.key}")
    seen = np.array(pages, dtype=np.float64)  # (pages, L, Hq, 2)
    seen = seen.reshape(len(seen), -1, 2)
    outcomes = {
        Arm("read", where, group): Outcome(seen[:, heads, i].mean(axis=1), "share of the attention")
        for i, where in enumerate((WORD, PAGE))
        for group, heads in groups(bench.scores, given.share).items()
    }
    return bench.rows(
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
