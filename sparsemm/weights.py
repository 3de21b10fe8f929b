"""Alternative weights from the same scores: an exponent, the maximum of a query group, a layer floor."""

from __future__ import annotations

import math

import numpy as np

from sparsemm.budgets import Scores
from sparsemm.errors import BudgetError


def power(scores: Scores, exponent: float) -> Scores:
    """Returns s ** a, any shape: an exponent a below 1 evens the heads out, one above 1 sets them further apart.

    Raises:
        BudgetError: if the exponent is not positive.
    """
    if not 0.0 < exponent < math.inf:
        raise BudgetError(f"exponent is {exponent}", hint="choose one above 0")
    return np.asarray(scores, dtype=np.float64) ** exponent


def group_max(scores: Scores, num_kv_heads: int) -> Scores:
    """Returns the maximum of each query group instead of the paper's sum: (L, Hq) -> (L, Hkv).

    Raises:
        BudgetError: if the query heads cannot be split evenly.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 2 or num_kv_heads < 1 or scores.shape[1] % num_kv_heads:
        raise BudgetError(f"scores of shape {scores.shape} cannot be grouped for {num_kv_heads} KV heads")
    return scores.reshape(len(scores), num_kv_heads, -1).max(axis=2)


def layer_floor(scores: Scores, floor: float) -> Scores:
    """Returns (1 - f) s[l,h] / sum(s) + f s[l,h] / (L sum(s[l])): each layer gets at least f of an even share.

    The heads of a layer whose scores are all zero share equally.

    Args:
        scores: (L, Hkv), not negative.
        floor: f, from 0 (only the scores count) to 1 (all layers get the same).

    Returns:
        (L, Hkv) float64 whose sum is 1.

    Raises:
        BudgetError: if the floor is outside 0..1, or the scores are not such a matrix.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if not 0.0 <= floor <= 1.0:
        raise BudgetError(f"floor is {floor}", hint="choose one between 0 and 1")
    if scores.ndim != 2 or scores.size == 0 or not np.isfinite(scores).all() or (scores < 0).any():
        what = f"scores of shape {scores.shape} are not a finite, non-negative (layers, KV heads) matrix"
        raise BudgetError(what, hint="pass ScoreTable.to_kv of a chased model")
    layers = scores.sum(axis=1, keepdims=True)
    inside = np.where(layers > 0, scores / np.where(layers > 0, layers, 1.0), 1.0 / scores.shape[1])
    total = layers.sum()
    overall = scores / total if total > 0 else np.full_like(scores, 1.0 / scores.size)
    return (1.0 - floor) * overall + floor * inside / len(scores)
