"""Policies of models that exist only as a shape."""

from __future__ import annotations

from typing import Any

from sparsemm.policies import make_policy
from sparsemm.policies.policy import ModelShape, Policy


def policy_for(
    method: str, layers: int, kv_heads: int, budget: int, window: int, scores: Any = None, **options: Any
) -> Policy:
    """A method for a model of so many layers, each with as many query as KV heads."""
    shape = ModelShape.plain(layers, kv_heads, kv_heads)
    return make_policy(method, budget, scores, window=window, **options).for_model(shape)
