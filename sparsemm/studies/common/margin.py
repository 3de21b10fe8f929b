"""Visual scores whose hits are weighted by how clearly a head looks at the word."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sparsemm.align.stage import greedy_answers
from sparsemm.datasets.records import read_records
from sparsemm.scores import ScoreTable
from sparsemm.studies.common.bench import Bench
from sparsemm.studies.common.watch import Watch, watched

PAGES = 32  # of the calibration set


class Margins(Watch):
    """Per layer and head, the sum over rows of max(0, best weight on the word - best elsewhere) / tokens of the word.

    The best weight on the word is larger exactly where the head's argmax lies on it: the hits are those of the chase.
    """

    def look(self, layer: int, weights: torch.Tensor) -> None:
        """Note the margins of the rows' attention (Hq, T, S) fp32."""
        word = self.marks[0].bool().to(weights.device)
        margin = weights.masked_fill(~word, 0.0).amax(-1) - weights.masked_fill(word, 0.0).amax(-1)
        self.shares[layer] = (margin.clamp(min=0.0) / word.sum(-1)).sum(-1).cpu()


def margin_table(bench: Bench) -> ScoreTable:
    """A table of the bench's model, over its own answers to the first calibration pages; measured once.

    Raises:
        DataError: if the calibration pages are missing.
    """
    found = bench.store.once("margins", lambda: _measured(bench))
    layers = bench.scores.layers_with_heads()
    per_sample = np.zeros((len(found), *bench.scores.scores.shape), dtype=np.float64)
    per_sample[:, layers] = np.array(found, dtype=np.float64).reshape(-1, len(layers), per_sample.shape[2])
    return ScoreTable.from_samples(per_sample, np.zeros_like(bench.scores.hits), bench.scores.header)


def _measured(bench: Bench) -> list[Any]:
    path = bench.root / "artifacts" / "datasets" / f"{bench.params.chase.dataset}.parquet"
    given, size = bench.params.chase, bench.params.evaluate.batch_size
    records = read_records(path, limit=PAGES)
    pages = []
    for start in range(0, len(records), size):
        batch = records[start : start + size]
        answers = greedy_answers(bench.model, bench.processor, batch, given.prompt, given.max_new_tokens)
        for record, answer in zip(batch, answers, strict=True):
            watch = watched(bench, record, answer, Margins)
            if watch is not None:
                pages.append([watch.shares[layer].tolist() for layer in sorted(watch.shares)])
    return pages
