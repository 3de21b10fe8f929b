"""Scores as a model has heads for them."""

from __future__ import annotations

import numpy as np
import torch

from sparsemm.policies.policy import ModelShape
from sparsemm.policies.sparsemm import kv_scores


def test_query_head_scores_are_summed_over_their_group():
    scores = np.arange(32.0).reshape(2, 16)
    summed = kv_scores(scores, ModelShape.plain(2, 16, 4))
    assert summed.tolist() == scores.reshape(2, 4, 4).sum(-1).tolist()
    tensor = torch.from_numpy(scores).bfloat16().requires_grad_()
    assert kv_scores(tensor, ModelShape.plain(2, 16, 16)).tolist() == scores.tolist()
