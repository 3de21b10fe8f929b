"""Measures how much heads attend to the words of an answer and to the page while the model produces the words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from sparsemm.align.words import align_answer
from sparsemm.attention_probe import AttentionCall, observe_attention
from sparsemm.datasets.records import Record
from sparsemm.layouts import get_layout
from sparsemm.layouts.tokens import box_positions
from sparsemm.prompts import append_answers, build_inputs, move_inputs
from sparsemm.studies.common.experiment import Experiment


class Watch:
    """Collects how much some rows of a batch of one attend to marked columns.

    Attributes:
        rows: (T,) int64 query positions.
        marks: (K, T, S) fp32, 1 on the columns that count for a row.
        shares: layer -> (Hq, K) fp32, attention on marked columns, averaged over the rows.
    """

    def __init__(self, rows: torch.Tensor, marks: torch.Tensor) -> None:
        self.rows, self.marks = rows, marks
        self.shares: dict[int, torch.Tensor] = {}

    def __call__(self, call: AttentionCall) -> None:
        """Stores what one layer attends to."""
        self.look(call.layer, call.weights(self.rows))

    def look(self, layer: int, weights: torch.Tensor) -> None:
        """Stores the share of the rows' attention (Hq, T, S) fp32 on the marked columns."""
        marks = self.marks.to(weights.device)
        self.shares[layer] = (torch.einsum("hts,kts->hk", weights, marks) / len(self.rows)).cpu()


@torch.inference_mode()
def watched(
    experiment: Experiment, record: Record, answer: list[int], kind: Callable[[Any, Any], Watch] = Watch
) -> Watch | None:
    """Runs the model over prompt and answer, and returns what the rows that predict the answer's words attend to.

    The marks are the word about to be said, and the page. The result is None if the answer has no word of the page.
    """
    model, processor, entry = experiment.model, experiment.processor, experiment.params.model(experiment.key)
    aligned = align_answer(record.id, answer, processor.tokenizer, record.entries, "ordered", entry.family)
    if not aligned.token_index:
        return None
    prompt = build_inputs(processor, [[record.image]], [experiment.params.chase.prompt])
    forced = append_answers(prompt, [answer], processor.tokenizer.pad_token_id)
    inputs = move_inputs(forced.inputs, model)
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
