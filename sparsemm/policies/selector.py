"""Selectors rate the positions of a prompt, and `select` picks those that fill the slots of each head."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Self

import torch


@dataclass(frozen=True, eq=False)
class Prompt:
    """The input of a selector: one layer of a prompt, or of the cache in a later turn.

    Most selectors need the first five attributes. Whichever needs another one names it in `reads`.

    Attributes:
        query: (B, Hq, R, D) post-RoPE, the newest R rows: all of them for a selector of every row, at least
            min(window, S) otherwise. In a later turn they are that turn's.
        key: (B, Hkv, S, D) post-RoPE.
        valid: (B, S) bool, false on left padding.
        window: w, at least 1: newest rows, which are kept whatever they are worth.
        scaling: factor of the logits, 1 / sqrt(D).
        value: (B, Hkv, S, D).
        projection: (1 or B, Hkv, G, D, M), the part of the layer's output projection that each query head has, M
            being the model's hidden size; it maps a value to what it adds to the residual stream.
        budget: B, mean slots per KV head, window included.
        layer: its index among those that are compressed.
        scratch: tensors that earlier layers of this prefill left for later ones, by layer index; empty in a later
            turn, where heads hold different positions, and after the last layer.
        accumulated: (B, Hkv, S) fp32, what `Selector.accumulate` made of all rows of a prompt that came in chunks; the
            queries are then the last `window` alone.
        image: (B, S) bool, which tokens stand for an image's pixels; None where there is no image, and in a later turn.
        replay: (B, Hkv, S) fp32, what every position was worth to a reading of the prompt over the full cache
            (`sparsemm.cache.replay`).
    """

    query: torch.Tensor
    key: torch.Tensor
    valid: torch.Tensor
    window: int
    scaling: float
    value: torch.Tensor | None = None
    projection: torch.Tensor | None = None
    budget: int = 0
    layer: int = 0
    scratch: dict[int, torch.Tensor] = field(default_factory=dict)
    image: torch.Tensor | None = None
    accumulated: torch.Tensor | None = None
    replay: torch.Tensor | None = None

    def candidates(self) -> torch.Tensor:
        """Returns the positions that may be evicted, (B, 1, S) bool: neither padding nor in the window."""
        length = self.valid.shape[-1]
        at = torch.arange(length, dtype=torch.int64, device=self.valid.device)
        return (self.valid & (at < length - self.window))[:, None]


@dataclass(frozen=True)
class Selector(ABC):
    """Rates each position of the prompt for each head; any selector goes with any policy.

    Attributes:
        every_row: whether `rate` wants every row of the prompt, not the last `window`.
        reads: what it needs beside queries and keys: "value", "projection", "scratch", "image", "replay" of the
            `Prompt`, and "slots" if it has a `refine`.
        drawn: whether it draws positions at random, which evaluation does anew for every page (`for_pages`).
        rates_turns: whether it can rate a later turn, where heads hold different positions, for `recompress`.
        rates_answers: whether `update` can rate the tokens of an answer beside those of the prompt.
        by_group: how attention of the query group becomes one number per KV head: "mean" or "max".
        summary: which positions fill the slots, for the report: "the positions that ...".
    """

    every_row: ClassVar[bool] = False
    reads: ClassVar[frozenset[str]] = frozenset()
    drawn: ClassVar[bool] = False
    rates_turns: ClassVar[bool] = True
    rates_answers: ClassVar[bool] = True
    by_group: ClassVar[str] = "mean"
    summary: ClassVar[str] = ""

    def for_pages(self, pages: Sequence[int]) -> Self:
        """Returns the selector for a batch whose rows are the pages of these numbers; few differ by page."""
        return self

    @abstractmethod
    def rate(self, prompt: Prompt) -> torch.Tensor:
        """Returns the rating of each position: (B, Hkv, S) fp32, -inf for padding.

        Ratings of the window are ignored, because it is always kept.
        """

    @property
    def accumulates(self) -> bool:
        """Whether `accumulate` can rate a prompt chunk by chunk; queries of earlier chunks are then not stored."""
        return False

    def accumulate(self, total: torch.Tensor | None, prompt: Prompt) -> torch.Tensor:
        """Returns what the rows so far say of each position, for selectors of every row that need nothing else of them.

        Args:
            total: (B, Hkv, S') fp32 of the chunks before, S' <= S; None for the first one.
            prompt: the S tokens so far, with the queries of the newest chunk alone.

        Returns:
            (B, Hkv, S) fp32.
        """
        raise NotImplementedError

    def refine(self, worth: torch.Tensor, slots: torch.Tensor, prompt: Prompt) -> torch.Tensor:
        """Returns the ratings once the slots of each head are known: unchanged, unless a selector overrides this.

        Args:
            worth: (B, Hkv, S) fp32 as from `rate`.
            slots: (B, Hkv) int64, window included.
            prompt: the rated prompt.
        """
        return worth

    def merge(self, prompt: Prompt, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the keys and values to store: the prompt's own, unless a selector puts evicted ones into kept ones.

        A selector that overrides this names "value" in `reads` and has no `rates_turns`: a later turn merges nothing.

        Args:
            prompt: the rated prompt, whose tensors are not to be changed in place.
            keep: (B, Hkv, S) bool; rows of other positions are not stored.

        Returns:
            (B, Hkv, S, D) each, in the prompt's dtype.
        """
        assert prompt.value is not None
        return prompt.key, prompt.value

    def update(
        self, worth: torch.Tensor, weights: torch.Tensor, age: torch.Tensor, since: torch.Tensor, window: int
    ) -> torch.Tensor:
        """Returns the ratings of all kept rows after one more token, for `hold_budget`.

        By default a row has the mean attention that it received while it was in the window. Rows of the prompt that
        were outside the window keep their observation score, which is such a mean too.

        Args:
            worth: (rows,) fp32, ratings of the rows of all heads so far; zero for the newest token.
            weights: (rows,) fp32, the new token's attention, over the query group as `by_group` says.
            age: (rows,) int32 tokens after this one.
            since: (rows,) int32 tokens since the prompt was compressed, this one included.
            window: w.
        """
        steps = torch.minimum(age + 1, since)
        return torch.where(age < window, worth + (weights - worth) / steps, worth)


def select(worth: torch.Tensor, valid: torch.Tensor, slots: torch.Tensor, window: int) -> torch.Tensor:
    """Returns the positions that each head keeps: the newest `window`, then the best rated, ties to the lowest.

    Args:
        worth: (B, Hkv, S) as from `Selector.rate`.
        valid: (B, S) bool, false on left padding.
        slots: (B, Hkv) int64, window included; a head with at least as many slots as tokens keeps them all.
        window: w.

    Returns:
        (B, Hkv, S) bool.
    """
    length = valid.shape[-1]
    at = torch.arange(length, dtype=torch.int64, device=valid.device)
    inside = valid & (at >= length - window)
    # The window ranks before everything, padding after everything.
    ranked = worth.masked_fill(inside[:, None], float("inf")).masked_fill(~valid[:, None], float("-inf"))
    order = torch.sort(ranked, dim=-1, descending=True, stable=True).indices
    # Few slots and a wide window: the newest tokens go first.
    rank = torch.empty_like(order).scatter_(-1, order, at.expand_as(order))
    newest = inside.flip(-1).cumsum(-1).flip(-1) - 1
    rank = torch.where(inside[:, None], newest[:, None], rank)
    return (rank < slots[..., None]) & valid[:, None]
