"""Policies of models that exist only as a shape."""

from __future__ import annotations

from typing import Any

from sparsemm.policies import METHODS, make_policy, policy_class
from sparsemm.policies.policy import ModelShape, Policy

# Methods that take prompts of any length; tests/cache/test_whole_heads.py is about the others.
ANY_LENGTH = [method for method in METHODS if not policy_class(method).whole_heads]
# Methods of these that need not know the image tokens; tests/cache/test_image_tokens.py is about the others.
UNTOLD = [method for method in ANY_LENGTH if not policy_class(method).measures]


def policy_for(
    method: str, layers: int, kv_heads: int, budget: int, window: int, scores: Any = None, **options: Any
) -> Policy:
    """A method for a model of so many layers, each with as many query as KV heads."""
    shape = ModelShape.plain(layers, kv_heads, kv_heads)
    return make_policy(method, budget, scores, window=window, **options).for_model(shape)
