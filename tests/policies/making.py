"""Policies of models that exist only as a shape."""

from __future__ import annotations

from typing import Any

from sparsemm.policies import METHODS, make_policy, policy_class, selector_of
from sparsemm.policies.policy import ModelShape, Policy
from sparsemm.policies.selector import Selector

# Methods that take prompts of any length; tests/cache/test_whole_heads.py is about the others.
ANY_LENGTH = [method for method in METHODS if not policy_class(method).whole_heads]
# Methods of these that need not know the image tokens; tests/cache/test_image_tokens.py is about the others.
UNTOLD = [
    method for method in ANY_LENGTH if not policy_class(method).measures and "image" not in selector_of(method).reads
]
# Methods that store other keys and values than the prompt's; tests/policies/test_merging.py is about them.
MERGING = [method for method in METHODS if type(selector_of(method)).merge is not Selector.merge]


def serves(method: str, **options: Any) -> bool:
    """Whether a method goes with these options of a cache."""
    selector = selector_of(method)
    held = selector.rates_answers or "hold_budget" not in options
    return held and (selector.rates_turns or "recompress" not in options)


def policy_for(
    method: str, layers: int, kv_heads: int, budget: int, window: int, scores: Any = None, **options: Any
) -> Policy:
    """A method for a model of so many layers, each with as many query as KV heads."""
    shape = ModelShape.plain(layers, kv_heads, kv_heads)
    return make_policy(method, budget, scores, window=window, **options).for_model(shape)
