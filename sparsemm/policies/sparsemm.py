"""SparseMM: slots in proportion to how often a head looks at the image."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any, ClassVar, Self

import numpy as np
import torch

from sparsemm.budgets import MOST_POWER, Scores, Slots, allocate, allocate_paper, raised
from sparsemm.errors import BudgetError
from sparsemm.policies.policy import ModelShape, Policy, check_share

REMEMBERED = 256  # prompt lengths whose slots are kept, since each layer asks for them


def kv_scores(scores: Any, shape: ModelShape) -> Scores:
    """Returns the scores of the compressed layers, (L, Hkv) float64; query groups are summed.

    Args:
        scores: a ScoreTable, or a matrix of query or KV heads, of all layers or of those.

    Raises:
        BudgetError: if the numbers of heads or layers do not fit the model, or the scores are no numbers.
        ScoreTableError: if the table belongs to another model; the bare matrix of a table is not checked.
    """
    if hasattr(scores, "to_kv"):
        if shape.config is not None:
            scores.check_model(shape.config)
        scores = scores.to_kv(shape.num_kv_heads)
    elif isinstance(scores, torch.Tensor):
        scores = scores.detach().double().cpu().numpy()
    try:
        matrix = np.asarray(scores, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise BudgetError(f"scores are no numbers: {error}", hint="pass ScoreTable.load(...) or a matrix") from error
    if matrix.ndim == 2 and matrix.shape[1] == shape.num_heads != shape.num_kv_heads:
        matrix = matrix.reshape(len(matrix), shape.num_kv_heads, -1).sum(-1)
    if matrix.ndim == 2 and len(matrix) == shape.num_hidden_layers:
        matrix = matrix[list(shape.layers)]
    if matrix.shape != (len(shape.layers), shape.num_kv_heads):
        hint = f"{shape.num_hidden_layers} layers of {shape.num_heads} query or {shape.num_kv_heads} KV heads"
        raise BudgetError(f"scores have shape {matrix.shape}", hint=hint)
    return matrix


@dataclass(frozen=True)
class SparseMM(Policy):
    """Window, uniform part and score part (arXiv 2506.05344, section 3.2).

    Attributes:
        scores: head scores: a ScoreTable, or a matrix (L, Hq) or (L, Hkv).
        rho: share beyond the window that is split evenly.
        power: exponent of the scores before they are split by: below 1 heads get more alike, above 1 less.
        mode: "exact" (exact totals, overflow flows on) or "paper" (the public code's arithmetic).
    """

    scores: Any = field(default=None, repr=False, compare=False)
    rho: float = field(default=0.1, kw_only=True)
    power: float = field(default=1.0, kw_only=True)
    mode: str = field(default="exact", kw_only=True)
    _seen: dict[int, Slots] = field(default_factory=dict, init=False, repr=False, compare=False)
    needs_scores: ClassVar[bool] = True
    summary: ClassVar[str] = "slots by visual score of the head."

    def __post_init__(self) -> None:
        """As `Policy`; raises BudgetError for missing scores, and for an impossible rho, power or mode too."""
        super().__post_init__()
        check_share("rho", self.rho)
        if not isinstance(self.power, Real) or not 0.0 < float(self.power) <= MOST_POWER:
            raise BudgetError(f"power is {self.power!r}", hint=f"use a number above 0, up to {MOST_POWER:g}")
        if self.mode not in ("exact", "paper"):
            raise BudgetError(f"mode {self.mode!r} is unknown", hint="use exact or paper")
        if self.needs_scores and self.scores is None:
            raise BudgetError(f"{type(self).__name__} needs head scores", hint="pass scores=ScoreTable.load(...)")

    def for_model(self, shape: ModelShape) -> Self:
        """As `Policy.for_model`; `scores` become the (L, Hkv) float64 matrix of this model."""
        if self.shape is not None:
            return super().for_model(shape)
        bound = replace(self, shape=shape, scores=self.head_scores(shape))
        bound.matrix(bound.budget + 1)  # impossible scores are refused now, not in the middle of a prefill
        return bound

    def head_scores(self, shape: ModelShape) -> Scores:
        """(L, Hkv) float64 scores of a model's KV heads."""
        return kv_scores(self.scores, shape)

    def matrix(self, length: int) -> Slots:
        """(L, Hkv) int64 slots for a prompt of `length` tokens."""
        slots = self._seen.get(length)
        if slots is None:
            slots = self.divide(length)
            if len(self._seen) >= REMEMBERED:
                self._seen.clear()
            self._seen[length] = slots
        return slots

    def divide(self, length: int) -> Slots:
        """(L, Hkv) int64 slots for a prompt of `length` tokens, computed anew."""
        split = allocate if self.mode == "exact" else allocate_paper
        return split(raised(self.scores, self.power), self.budget, self.window, self.rho, length)

    def slots(self, layer: int, lengths: list[int], worth: torch.Tensor | None) -> Slots:
        """(B, Hkv) int64: the layer's row of the allocation for each prompt length."""
        return np.stack([self.matrix(length)[layer] for length in lengths])
