"""Scores as a model has heads for them."""

from __future__ import annotations

import numpy as np
import torch

from sparsemm.cache.served import kv_scores


def test_query_head_scores_are_summed_over_their_group():
    scores = np.arange(32.0).reshape(2, 16)
    assert kv_scores(scores, 16, 4).tolist() == scores.reshape(2, 4, 4).sum(-1).tolist()
    tensor = torch.from_numpy(scores).bfloat16().requires_grad_()
    assert kv_scores(tensor, 16, 16).tolist() == scores.tolist()
