"""The base class of all methods: budget, window, selector, and how many slots each KV head gets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
import torch

from sparsemm.budgets import Slots
from sparsemm.errors import BudgetError
from sparsemm.policies.selector import Selector
from sparsemm.policies.window_attention import WindowAttention


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a model that methods depend on.

    Attributes:
        layers: numbers of the layers with full attention, which are the ones that are compressed.
        num_heads, num_kv_heads: query and KV heads of a layer.
        num_hidden_layers: all layers.
        config: of the whole model, to which a score table is compared; None if it is not known.
    """

    layers: tuple[int, ...]
    num_heads: int
    num_kv_heads: int
    num_hidden_layers: int
    config: Any = field(default=None, repr=False, compare=False)

    @classmethod
    def plain(cls, num_layers: int, num_heads: int, num_kv_heads: int) -> ModelShape:
        """Returns the shape of a model whose layers all have full attention."""
        return cls(tuple(range(num_layers)), num_heads, num_kv_heads, num_layers)


@dataclass(frozen=True, kw_only=True)
class Policy(ABC):
    """How many slots each KV head of a layer gets.

    Attributes:
        budget: B, mean slots per KV head, window included.
        window: w, the newest tokens, which every head keeps and whose queries rate the others.
        selector: rates the positions, of which each head keeps the best.
        shape: of the model, set by `for_model`.
        compresses: whether anything is ever evicted.
        needs_scores: whether it has `scores`.
        summary: one line that explains the method in the report; empty for the full cache.
        drawn: whether its head scores are drawn at random, which evaluation does anew for every page (`for_pages`).
        measures: whether all layers are measured before the budget is split (`sparsemm.policies.layer_shares`), so that
            the keys and values of all of them are in memory at once.
        whole_heads: whether some heads keep the whole prompt, so that a prompt may be too long for the budget.
    """

    budget: int = 0  # refused: there is no default
    window: int = 32
    selector: Selector = WindowAttention()
    shape: ModelShape | None = field(default=None, repr=False)
    summary: ClassVar[str] = ""
    compresses: ClassVar[bool] = True
    needs_scores: ClassVar[bool] = False
    drawn: ClassVar[bool] = False
    measures: ClassVar[bool] = False
    whole_heads: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuses impossible options.

        Raises:
            BudgetError: for a budget or window that is no whole number, or 1 <= window <= budget not holding.
        """
        if self.budget == 0:
            raise BudgetError(f"{type(self).__name__} needs a budget", hint="mean slots per KV head, window included")
        if not isinstance(self.budget, Integral) or not isinstance(self.window, Integral):
            what = f"budget {self.budget!r} with window {self.window!r}"
            raise BudgetError(what, hint="use whole numbers of slots")
        if not 1 <= self.window <= self.budget:
            what = f"budget {self.budget} with window {self.window}"
            raise BudgetError(what, hint="1 <= window <= budget is needed")

    def for_model(self, shape: ModelShape) -> Self:
        """Returns the policy for a model of this shape; one that has a shape already is checked against it.

        Raises:
            BudgetError: if it is for another shape, or has scores that do not fit.
            ScoreTableError: if it has a score table of another model.
        """
        if self.shape is None:
            return replace(self, shape=shape)
        if (self.num_layers, self.num_kv_heads) != (len(shape.layers), shape.num_kv_heads):
            own, other = (self.num_layers, self.num_kv_heads), (len(shape.layers), shape.num_kv_heads)
            raise BudgetError(f"the policy is for {own} layers and KV heads, the model has {other}")
        return self

    def for_pages(self, shape: ModelShape, pages: Sequence[int]) -> Policy:
        """Returns `for_model` for a batch of these pages, by number; only random methods differ by page."""
        return replace(self, selector=self.selector.for_pages(pages)).for_model(shape)

    def for_rows(self, rows: Sequence[int]) -> Self:
        """Returns the same policy for these rows of its batch, in that order; few policies differ by row."""
        return self

    @property
    def every_row(self) -> bool:
        """Whether it needs the queries of every row of the prompt, not those of the last `window` alone."""
        return self.measures or self.selector.every_row

    @property
    def accumulates(self) -> bool:
        """Whether every row of the prompt can be rated chunk by chunk, without storing the queries of all chunks."""
        return not self.measures and self.selector.accumulates

    @property
    def reads(self) -> frozenset[str]:
        """What it needs beside queries and keys, as `Selector.reads`."""
        return self.selector.reads | ({"image"} if self.measures else set())

    @property
    def num_layers(self) -> int:
        """Layers that are compressed."""
        assert self.shape is not None
        return len(self.shape.layers)

    @property
    def num_kv_heads(self) -> int:
        """KV heads of a layer."""
        assert self.shape is not None
        return self.shape.num_kv_heads

    @abstractmethod
    def slots(self, layer: int, lengths: list[int], worth: torch.Tensor | None) -> Slots:
        """Returns the slots of each head of one layer.

        Args:
            layer: its index among those that are compressed.
            lengths: tokens of each batch row's prompt, padding left out.
            worth: (B, Hkv, S) fp32 as from the selector, or None if nothing is evicted.

        Returns:
            (B, Hkv) int64, window included, at most the row's length.
        """

    def everything(self, lengths: list[int]) -> Slots:
        """(B, Hkv) int64: every head keeps every token."""
        return np.repeat(np.array(lengths, dtype=np.int64)[:, None], self.num_kv_heads, axis=1)


def check_share(name: str, share: Any) -> None:
    """Raises BudgetError for an option that is no number between 0 and 1."""
    if not isinstance(share, Real) or not 0.0 <= float(share) <= 1.0:
        raise BudgetError(f"{name} is {share!r}", hint=f"choose {name} between 0 and 1")
