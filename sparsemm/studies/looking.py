"""How much visual and non-visual heads look at the word that is about to be said (paper, figures 10 and 11)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sparsemm.align.stage import greedy_answers
from sparsemm.align.words import align_answer
from sparsemm.attention_probe import AttentionCall, observe_attention
from sparsemm.chase.hits import append_answers
from sparsemm.datasets.records import Record
from sparsemm.errors import DataError
from sparsemm.evaluate.rows import Arm, Outcome, Row
from sparsemm.layouts import get_layout
from sparsemm.layouts.tokens import box_positions
from sparsemm.params.studies import LookingParams
from sparsemm.prompts import build_inputs
from sparsemm.scores import ScoreTable, top_count
from sparsemm.studies.bench import Bench
from sparsemm.studies.declaration import Rows, Study, sentence, spread

WORD, PAGE = "on the word", "on the page"
BEST, MIDDLE, LAST = "best heads", "middle heads", "last heads"


class Watch:
    """Rows to look at in a batch of one, and the attention they give to the columns that are marked.

    Attributes:
        rows: (T,) int64 query positions.
        marks: (K, T, S) fp32, 1 on the columns that count for a row.
        shares: layer -> (Hq, K) fp32, attention on marked columns, mean over the rows.
    """

    def __init__(self, rows: torch.Tensor, marks: torch.Tensor) -> None:
        self.rows, self.marks = rows, marks
        self.shares: dict[int, torch.Tensor] = {}

    def __call__(self, call: AttentionCall) -> None:
        """Note one layer."""
        self.look(call.layer, call.weights(self.rows))

    def look(self, layer: int, weights: torch.Tensor) -> None:
        """Note what the rows' attention (Hq, T, S) fp32 says."""
        marks = self.marks.to(weights.device)
        self.shares[layer] = (torch.einsum("hts,kts->hk", weights, marks) / len(self.rows)).cpu()


@torch.inference_mode()
def watched(bench: Bench, record: Record, answer: list[int], kind: Callable[[Any, Any], Watch] = Watch) -> Watch | None:
    """What the rows that say an answer's words look at: marks are the word about to be said, and the page.

    None if the answer has none of the page's words.
    """
    model, processor, entry = bench.model, bench.processor, bench.params.model(bench.key)
    aligned = align_answer(record.id, answer, processor.tokenizer, record.entries, "ordered", entry.family)
    if not aligned.token_index:
        return None
    prompt = build_inputs(processor, [[record.image]], [bench.params.chase.prompt])
    forced = append_answers(prompt, [answer], processor.tokenizer.pad_token_id)
    inputs = {
        k: v.to(model.device, model.dtype if v.is_floating_point() else v.dtype) for k, v in forced.inputs.items()
    }
    (image,) = get_layout(entry.family).image_tokens(model.config, inputs, 0, [record.image.size])
    rows = forced.first_rows[0] + torch.tensor(aligned.token_index, dtype=torch.int64, device="cpu")
    marks = torch.zeros(2, len(rows), inputs["input_ids"].shape[1], dtype=torch.float32, device="cpu")
    marks[1, :, torch.from_numpy(image.positions)] = 1
    for at, index in enumerate(aligned.entry_index):
        marks[0, at, torch.from_numpy(box_positions(image, record.entries[index].box))] = 1
    watch = kind(rows, marks)
    with observe_attention(model, watch):
        model(**inputs, use_cache=False)
    return watch


def shares(bench: Bench, record: Record) -> list[list[list[float]]] | None:
    """Attention on the word about to be said and on the page, (L, Hq, 2), mean over the answer's tokens on the page.

    None if the model reads none of the page's words.
    """
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


STUDY = Study(
    title="What visual and other heads look at",
    question="Share of a head's attention on the word about to be said and on the page: of the best heads by score, of"
    " heads in the middle of the ranking, and of the last ones.",
    conclusion=conclusion,
    headline=lambda row: (row.condition, row.setting) == (WORD, BEST),
)


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
