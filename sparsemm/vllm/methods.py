"""The plug-in's interface to the rest of SparseMM: policies, selection, score tables and layer types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from sparsemm.budgets import Slots
from sparsemm.cache.served import layers_of
from sparsemm.files import sha256_file
from sparsemm.policies import is_method, make_policy, parts, policy_class, selector_of
from sparsemm.policies.policy import ModelShape, Policy
from sparsemm.policies.selector import Prompt, select
from sparsemm.policies.sparsemm import kv_scores

if TYPE_CHECKING:
    from sparsemm.registry.lookup import VersionedTable

__all__ = [
    "RATES",
    "STATIC",
    "bound_policy",
    "full_layers",
    "kept_positions",
    "kept_rows",
    "needs_scores",
    "rate",
    "rates_every_row",
    "read_scores",
    "window_of",
    "why_not",
]

# Policies whose split of the budget follows from the scores and the length of the prompt alone.
STATIC = ("full", "sparsemm", "snapkv", "pyramidkv", "random", "streaming")
# Selectors that need only what the worker has when a prompt ends, its last rows and all keys of its own heads; and
# `peak`, whose maximum over all rows is updated with every chunk of the prompt.
RATES = ("snapkv", "unpooled", "recency", "peak")
RUNNING = "peak"
CONTENT = "its split follows the prompt's content, which vLLM's scheduler does not see"
ROWS = "it rates by every row of the prompt, and the queries of earlier chunks are gone"
OTHER = "its selector has not been compared with transformers there"


def why_not(method: str) -> str | None:
    """Returns why the plug-in does not support a method; None if it does, or if there is no such method."""
    if not is_method(method):
        return None
    policy, selector = parts(method)
    if policy not in STATIC or selector not in (None, *RATES):
        return (
            ROWS
            if selector_of(method).every_row and selector != RUNNING
            else CONTENT
            if policy not in STATIC
            else OTHER
        )
    return None


def rates_every_row(method: str) -> bool:
    """Returns whether all rows of a prompt rate the others, so that none may come from the prefix cache."""
    return is_method(method) and parts(method)[1] == RUNNING


def bound_policy(
    method: str, budget: int, scores: Any, options: Mapping[str, Any], layers: int, num_kv_heads: int
) -> Policy:
    """Returns a method for a model with this many compressed layers; `scores` are (layers, Hkv) or None.

    Raises:
        BudgetError: if method, budget, scores or an option are impossible.
    """
    scores = None if scores is None else np.array(scores, dtype=np.float64)
    policy = make_policy(method, budget, scores, **options)
    return policy.for_model(ModelShape.plain(layers, num_kv_heads, num_kv_heads))


def window_of(method: str, budget: int | None, scores: Any, options: dict[str, Any]) -> int:
    """Returns the observation window of a method with these options.

    Raises:
        BudgetError: if the method or an option is unknown, or a value is impossible.
    """
    return int(make_policy(method, budget, scores, **options).window)


def needs_scores(method: str) -> bool:
    """Returns whether a method needs head scores.

    Raises:
        BudgetError: if it is unknown.
    """
    return policy_class(method).needs_scores


def kept_rows(policy: Policy, length: int) -> Slots:
    """(L, Hkv) int64 rows that a policy of `STATIC` keeps of a prompt of `length` tokens."""
    if not policy.compresses or length < policy.budget:
        return np.full((policy.num_layers, policy.num_kv_heads), length, dtype=np.int64)
    slots = np.concatenate([policy.slots(layer, [length], None) for layer in range(policy.num_layers)])
    return np.minimum(slots, length)


def kept_positions(
    policy: Policy,
    query: torch.Tensor,
    key: torch.Tensor,
    slots: torch.Tensor,
    scaling: float,
    worth: torch.Tensor | None = None,
) -> torch.Tensor:
    """Selects the positions of a prompt that each head keeps.

    Args:
        policy: of `STATIC`.
        query: (Hq, R, D) post-RoPE, the prompt's last rows, at least the window or all there are.
        key: (Hkv, S, D) post-RoPE.
        slots: (Hkv,) int64 rows that each head keeps.
        scaling: factor of the logits.
        worth: (Hkv, S) what positions are worth, if it was rated chunk by chunk.

    Returns:
        (Hkv, S) bool.
    """
    valid = torch.ones(1, key.shape[1], dtype=torch.bool, device=key.device)
    if not policy.compresses or key.shape[1] < policy.budget:
        return valid.expand(key.shape[0], -1)
    rated = rate(policy, query, key, scaling) if worth is None else worth
    return select(rated[None], valid, slots[None], policy.window)[0]


def rate(policy: Policy, query: torch.Tensor, key: torch.Tensor, scaling: float) -> torch.Tensor:
    """(Hkv, S) fp32: what the newest rows (Hq, R, D) say that positions with keys (Hkv, S, D) are worth."""
    valid = torch.ones(1, key.shape[1], dtype=torch.bool, device=key.device)
    return policy.selector.rate(Prompt(query[None], key[None], valid, policy.window, scaling))[0]


def full_layers(text_config: Any, where: str) -> tuple[int, ...]:
    """Returns the numbers of a model's full-attention layers, which are compressed.

    Raises:
        CacheError: if a layer is neither full nor sliding attention, or none is full.
    """
    return tuple(layers_of(text_config, where)[1])


def read_scores(version: VersionedTable, config: Any, layers: tuple[int, ...]) -> tuple[NDArray[np.float64], str]:
    """Returns the scores of a model's KV heads, with the SHA-256 of the table's file.

    Args:
        version: score table, as `sparsemm.registry.lookup.look_up` found it.
        config: config of the model, as transformers loads it; the table must belong to this model.
        layers: the model's full-attention layers.

    Returns:
        (L, Hkv) float64 of those layers, and 64 hex digits.

    Raises:
        ScoreTableError: if the table is another model's.
    """
    text = config.get_text_config()
    shape = ModelShape(layers, text.num_attention_heads, text.num_key_value_heads, text.num_hidden_layers, config)
    return kv_scores(version.table, shape), sha256_file(version.path)
