"""Visual scores whose hits are weighted by how clearly a head prefers the word."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sparsemm.align.stage import greedy_answers
from sparsemm.datasets.records import read_records
from sparsemm.scores import ScoreTable
from sparsemm.studies.common.experiment import Experiment
from sparsemm.studies.common.watch import Watch, watched

PAGES = 32  # first pages of the calibration set


class Margins(Watch):
    """Sums max(0, largest weight on the word - largest weight elsewhere) / tokens of the word, by layer and head.

    The weight on the word is larger exactly if the head's argmax lies on it, so the hits are those of the chase.
    """

    def look(self, layer: int, weights: torch.Tensor) -> None:
        """Stores the margins of the rows' attention (Hq, T, S) fp32."""
        word = self.marks[0].bool().to(weights.device)
        margin = weights.masked_fill(~word, 0.0).amax(-1) - weights.masked_fill(word, 0.0).amax(-1)
        self.shares[layer] = (margin.clamp(min=0.0) / word.sum(-1)).sum(-1).cpu()


def margin_table(experiment: Experiment) -> ScoreTable:
    """Returns a table of the model over its own answers to the first calibration pages. It is measured once.

    Raises:
        DataError: if the calibration pages are missing.
    """
    margins = experiment.store.once("margins", lambda: _measured(experiment))
    layers = experiment.scores.layers_with_heads()
    per_sample = np.zeros((len(margins), *experiment.scores.scores.shape), dtype=np.float64)
    per_sample[:, layers] = np.array(margins, dtype=np.float64).reshape(-1, len(layers), per_sample.shape[2])
    return ScoreTable.from_samples(per_sample, np.zeros_like(experiment.scores.hits), experiment.scores.header)


def _measured(experiment: Experiment) -> list[Any]:
    path = experiment.root / "artifacts" / "datasets" / f"{experiment.params.chase.dataset}.parquet"
    chase, size = experiment.params.chase, experiment.params.evaluate.batch_size
    records = read_records(path, limit=PAGES)
    pages = []
    for start in range(0, len(records), size):
        batch = records[start : start + size]
        answers = greedy_answers(experiment.model, experiment.processor, batch, chase.prompt, chase.max_new_tokens)
        for record, answer in zip(batch, answers, strict=True):
            watch = watched(experiment, record, answer, Margins)
            if watch is not None:
                pages.append([watch.shares[layer].tolist() for layer in sorted(watch.shares)])
    return pages
