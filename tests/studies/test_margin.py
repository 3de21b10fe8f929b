"""Margins are the chase's hits, weighted by how clear they are."""

from __future__ import annotations

import torch

from sparsemm.studies.common.margin import Margins


def test_only_a_head_whose_best_weight_is_on_the_word_counts():
    marks = torch.zeros(2, 2, 4)
    marks[0, 0, :2], marks[0, 1, 3] = 1, 1
    watch = Margins(torch.tensor([2, 3]), marks)
    weights = torch.tensor(
        [
            [[0.5, 0.1, 0.2, 0.2], [0.1, 0.1, 0.1, 0.7]],  # both rows look at their word
            [[0.3, 0.1, 0.6, 0.0], [0.4, 0.2, 0.1, 0.3]],  # neither
        ]
    )
    watch.look(5, weights)
    assert torch.allclose(watch.shares[5], torch.tensor([(0.5 - 0.2) / 2 + (0.7 - 0.1) / 1, 0.0]))
