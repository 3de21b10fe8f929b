"""One file per method, each with one decision in it: how many slots every KV head keeps."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

import numpy as np

from sparsemm.budgets import Scores
from sparsemm.errors import BudgetError
from sparsemm.policies.adakv import AdaKV
from sparsemm.policies.full import Full
from sparsemm.policies.h2o import H2O
from sparsemm.policies.policy import Policy
from sparsemm.policies.pyramidkv import PyramidKV
from sparsemm.policies.random_heads import RandomHeads, random_scores
from sparsemm.policies.snapkv import SnapKV
from sparsemm.policies.sparsemm import SparseMM
from sparsemm.policies.sparsemm_adaptive import SparseMMAdaptive
from sparsemm.policies.streaming import Streaming

__all__ = ["CLASSES", "METHODS", "Policy", "budgets_of", "get_policy", "policy_class"]

CLASSES: dict[str, type[Policy]] = {
    "full": Full,
    "sparsemm": SparseMM,
    "snapkv": SnapKV,
    "pyramidkv": PyramidKV,
    "adakv": AdaKV,
    "random": RandomHeads,
    "streaming": Streaming,
    "h2o": H2O,
    "sparsemm-adaptive": SparseMMAdaptive,
}
METHODS = tuple(CLASSES)


def policy_class(method: str) -> type[Policy]:
    """The class of a method, which says what is particular about it: ask it instead of comparing names.

    Raises:
        BudgetError: if the method is unknown.
    """
    if method not in CLASSES:
        raise BudgetError(f"method {method!r} is unknown", hint=f"use one of {', '.join(CLASSES)}")
    return CLASSES[method]


def budgets_of(method: str, budgets: Iterable[int]) -> list[int | None]:
    """The budgets to run a method with: all of them, or None alone for one that evicts nothing."""
    return list(budgets) if policy_class(method).compresses else [None]


def get_policy(
    method: str,
    num_layers: int,
    num_kv_heads: int,
    budget: int,
    window: int,
    *,
    scores: Scores | None = None,
    rho: float = 0.1,
    mode: str = "exact",
    seed: int = 0,
    adapt: float = 0.5,
) -> Policy:
    """The policy of a method.

    Args:
        method: one of `METHODS`.
        num_layers, num_kv_heads: shape of the model.
        budget: B, mean slots per KV head, window included; ignored by "full".
        window: w, newest tokens every head keeps.
        scores: (L, Hkv) float64 for "sparsemm" and "sparsemm-adaptive".
        rho: share beyond the window that these two and "random" split evenly.
        mode: "exact" or "paper", for "sparsemm" and "random"; "sparsemm-adaptive" is always exact.
        seed: of "random".
        adapt: share of a layer's split that follows the prompt, for "sparsemm-adaptive".

    Raises:
        BudgetError: if the method is unknown, a parameter is impossible, or scores are missing or misshapen.
    """
    kind: Any = policy_class(method)
    if not kind.compresses:
        return kind(num_layers, num_kv_heads, budget, max(window, 1))
    if not isinstance(budget, Integral) or not isinstance(window, Integral):
        raise BudgetError(f"budget {budget!r} with window {window!r}", hint="use whole numbers of slots")
    if not 1 <= window <= budget:
        raise BudgetError(f"budget {budget} with window {window}", hint="1 <= window <= budget is needed")
    if mode not in ("exact", "paper"):
        raise BudgetError(f"mode {mode!r} is unknown", hint="use exact or paper")
    for name, share in (("rho", rho), ("adapt", adapt)):
        if not isinstance(share, Real) or not 0.0 <= share <= 1.0:
            raise BudgetError(f"{name} is {share!r}", hint=f"choose {name} between 0 and 1")
    if not isinstance(seed, Integral):
        raise BudgetError(f"seed is {seed!r}", hint="use a whole number")
    shape = (num_layers, num_kv_heads, budget, window)
    if issubclass(kind, H2O):
        return kind(num_layers, num_kv_heads, budget, max(window, budget // 2))
    if not issubclass(kind, SparseMM):
        return kind(*shape)
    if kind.drawn:
        scores = random_scores(num_layers, num_kv_heads, seed)
    if scores is None:
        raise BudgetError(f"{method} needs head scores", hint="pass scores=ScoreTable.load(...)")
    scores = np.asarray(scores, dtype=np.float64)
    if scores.shape != (num_layers, num_kv_heads):
        raise BudgetError(f"scores have shape {scores.shape}, the model has {(num_layers, num_kv_heads)} KV heads")
    own = {"adapt": adapt} if issubclass(kind, SparseMMAdaptive) else {"mode": mode}
    policy = kind(*shape, scores=scores, rho=rho, **own)
    policy.matrix(budget + 1)  # impossible scores or rho are refused now, not in the middle of a prefill
    return policy
