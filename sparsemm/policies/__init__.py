"""One file per method, each with one decision in it: how many slots every KV head keeps."""

from __future__ import annotations

from numbers import Integral, Real

import numpy as np

from sparsemm.budgets import Scores
from sparsemm.errors import BudgetError
from sparsemm.policies.adakv import AdaKV
from sparsemm.policies.full import Full
from sparsemm.policies.h2o import H2O
from sparsemm.policies.policy import Policy
from sparsemm.policies.pyramidkv import PyramidKV
from sparsemm.policies.random_heads import random_scores
from sparsemm.policies.snapkv import SnapKV
from sparsemm.policies.sparsemm import SparseMM
from sparsemm.policies.sparsemm_adaptive import SparseMMAdaptive
from sparsemm.policies.streaming import Streaming

__all__ = ["METHODS", "NEED_SCORES", "Policy", "get_policy"]

METHODS = ("full", "sparsemm", "snapkv", "pyramidkv", "adakv", "random", "streaming", "h2o", "sparsemm-adaptive")
NEED_SCORES = ("sparsemm", "sparsemm-adaptive")
PLAIN = {"snapkv": SnapKV, "pyramidkv": PyramidKV, "adakv": AdaKV, "streaming": Streaming}  # nothing but the shape


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
    if method not in METHODS:
        raise BudgetError(f"method {method!r} is unknown", hint=f"use one of {', '.join(METHODS)}")
    if method == "full":
        return Full(num_layers, num_kv_heads, budget, max(window, 1))
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
    if method in PLAIN:
        return PLAIN[method](*shape)
    if method == "h2o":
        return H2O(num_layers, num_kv_heads, budget, max(window, budget // 2))
    if method == "random":
        scores = random_scores(num_layers, num_kv_heads, seed)
    if scores is None:
        raise BudgetError(f"{method} needs head scores", hint="pass scores=ScoreTable.load(...)")
    scores = np.asarray(scores, dtype=np.float64)
    if scores.shape != (num_layers, num_kv_heads):
        raise BudgetError(f"scores have shape {scores.shape}, the model has {(num_layers, num_kv_heads)} KV heads")
    if method == "sparsemm-adaptive":
        policy: SparseMM = SparseMMAdaptive(*shape, scores=scores, rho=rho, adapt=adapt)
    else:
        policy = SparseMM(*shape, scores=scores, rho=rho, mode=mode)
    policy.matrix(budget + 1)  # impossible scores or rho are refused now, not in the middle of a prefill
    return policy
