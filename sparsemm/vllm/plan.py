"""Computes the place of every row of a compressed prompt, with pure functions for vLLM's scheduler and its workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsemm.vllm import methods

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Plan:
    """Everything that decides how many rows a head keeps of a prompt; hashable, so that a KV cache spec can hold it.

    Attributes:
        method: one of `methods.STATIC`.
        num_kv_heads: of a layer, over all tensor-parallel ranks.
        layers: indices of the model's full-attention layers, rising; the others are not compressed.
        buckets: positions in `layers` of the layers that share a block table, a tuple for every table.
        budget: B, mean slots per KV head, window included.
        window: w, newest prompt tokens, which rate the others.
        options: names and values of the method's other options.
        scores: (L, Hkv) visual scores of the methods that need them.
        copy: whether kept rows move to blocks of their own, so that prompt blocks stay in the prefix cache.
        ranks: tensor-parallel ranks.
    """

    method: str
    num_kv_heads: int
    layers: tuple[int, ...]
    budget: int
    window: int
    options: tuple[tuple[str, Any], ...]
    scores: tuple[tuple[float, ...], ...] | None
    copy: bool
    ranks: int
    buckets: tuple[tuple[int, ...], ...] = ()

    def rows(self, length: int) -> Integers:
        """(L, Hkv) int64 rows that every KV head keeps of a prompt of `length` tokens."""
        return _rows(self, length)

    def rank_rows(self, length: int, rank: int) -> Integers:
        """(L, heads of the rank) int64; where there are more ranks than KV heads, some hold the same head."""
        width = self.heads_per_rank
        first = rank * self.num_kv_heads // self.ranks
        return self.rows(length)[:, first : first + width]

    @property
    def heads_per_rank(self) -> int:
        """KV heads of a layer that a rank holds."""
        return max(1, self.num_kv_heads // self.ranks)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, which `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Plan:
        """A plan from the values of `to_json`, which may have become lists on their way."""

        def freeze(value: Any) -> Any:
            return tuple(freeze(item) for item in value) if isinstance(value, list | tuple) else value

        return cls(**{name: freeze(value) for name, value in values.items()})


@lru_cache(maxsize=8)
def policy_of(plan: Plan) -> methods.Policy:
    """The policy of a plan, for the layers it compresses.

    Raises:
        BudgetError: if method, budget, window or scores are impossible.
    """
    options = {"window": plan.window, **dict(plan.options)}
    return methods.bound_policy(plan.method, plan.budget, plan.scores, options, len(plan.layers), plan.num_kv_heads)


@lru_cache(maxsize=1024)
def _rows(plan: Plan, length: int) -> Integers:
    return methods.kept_rows(policy_of(plan), length)


def like_layers(plan: Plan, count: int | None) -> tuple[tuple[int, ...], ...]:
    """Splits the layers into buckets of equal size that keep similar numbers of rows.

    The layers of a bucket share a block table, and each takes as many blocks as the largest one needs. More buckets
    waste less memory and cost the scheduler more time.

    Args:
        plan: without buckets.
        count: how many; None chooses the fewest, up to 8, that take at most 10 % more memory than any other choice.
    """
    total = plan.rows(max(1 << 14, 2 * plan.budget)).sum(axis=1)
    layers = len(plan.layers)
    order = np.argsort(-total, kind="stable")

    def rows_taken(count: int) -> int:
        return sum(len(part) * int(total[part[0]]) for part in np.split(order, count))

    if count is None:
        counts = [n for n in range(1, 9) if layers % n == 0]
        most = 1.1 * min(map(rows_taken, counts))
        count = next(n for n in counts if rows_taken(n) <= most)
    return tuple(tuple(sorted(part.tolist())) for part in np.split(order, count))


def pages(rows: Integers, block_size: int) -> Integers:
    """Pages (int64, of `rows`' shape) that rows take; a page is a block's part of one KV head."""
    return -(-rows // block_size)


@dataclass(frozen=True)
class HeadPages:
    """Which page holds which row of every head; page i is lane i % H of the request's (i // H)-th kept block.

    The prompt's rows of head h fill pages of its own, dense and in order. Afterwards every head takes the next free
    page when its last one is full; which one that is follows from the row counts alone, so nothing is stored or sent.

    Attributes:
        rows: (N, H) int64, of the layers of one rank.
        first: (N, H) int64, pages of the prompt.
        before: (N, H) int64, pages of the heads before.
        total: (N,) int64, pages of all heads.
        turn: (N, H) int64, order in which the heads take their next page.
        free: (N, H) int64, rows until a head needs that page, rising by `turn`.
    """

    rows: Integers
    block_size: int
    first: Integers
    before: Integers
    total: Integers
    turn: Integers
    free: Integers

    @classmethod
    def of(cls, rows: Integers, block_size: int) -> HeadPages:
        """The pages of (N, H) int64 rows."""
        first = pages(rows, block_size)
        free = first * block_size - rows
        order = np.argsort(free, axis=1, kind="stable")
        turn = np.empty_like(order)
        np.put_along_axis(turn, order, np.arange(rows.shape[1])[None], axis=1)
        total = first.sum(axis=1)
        return cls(rows, block_size, first, first.cumsum(axis=1) - first, total, turn, np.sort(free, axis=1))

    def numbers(self, count: int) -> Integers:
        """(N, H, count) int64: the page of each head's j-th run of `block_size` rows."""
        heads = self.rows.shape[1]
        run = np.arange(count, dtype=np.int64)
        prompt = self.before[..., None] + run
        later = self.total[:, None, None] + (run - self.first[..., None]) * heads + self.turn[..., None]
        return np.where(run < self.first[..., None], prompt, later)

    def blocks(self) -> Integers:
        """(N,) int64: blocks that hold the prompt's pages of each layer."""
        return pages(self.total, self.rows.shape[1])

    def due(self) -> Integers:
        """(N,) int64, 1 to `block_size`: tokens after the prompt with which a layer needs one block more."""
        heads = self.rows.shape[1]
        spare = self.blocks() * heads - self.total
        return np.take_along_axis(self.free, spare[:, None], axis=1)[:, 0] + 1


@dataclass(frozen=True)
class Columns:
    """Columns of a request's block table: those of its whole prompt, and those of what is kept and what comes later.

    Pages are dense and never move, so `block_size` tokens more need exactly one block more, whatever the heads hold.
    In place, the columns are `[kept, null up to the prompt's end, later]`; with `copy` they are
    `[prompt, kept and later]`, and all prompt columns are freed.

    Attributes:
        prompt: P in tokens.
        whole: blocks of the uncompressed prompt.
        kept: blocks after compression.
        due: tokens after the prompt with which one block more is needed, 1 to `block_size`.
    """

    prompt: int
    block_size: int
    whole: int
    kept: int
    due: int
    copy: bool

    @classmethod
    def of(cls, plan: Plan, bucket: tuple[int, ...], block_size: int, prompt: int) -> Columns:
        """The columns of a bucket of layers; all ranks and layers of a bucket have the same block table."""
        kept, due = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        for rank in range(plan.ranks):
            head_pages = HeadPages.of(plan.rank_rows(prompt, rank)[list(bucket)], block_size)
            kept, due = np.append(kept, head_pages.blocks()), np.append(due, head_pages.due())
        most = int(kept.max())
        return cls(prompt, block_size, -(-prompt // block_size), most, int(due[kept == most].min()), plan.copy)

    def held(self, later: int) -> int:
        """Blocks that hold the kept rows and `later` tokens after the prompt."""
        return self.kept + (later + self.block_size - self.due) // self.block_size

    def count(self, tokens: int) -> int:
        """Columns of a request that has `tokens` tokens, freed ones included."""
        if tokens < self.prompt:
            return -(-tokens // self.block_size)
        return self.whole + self.held(tokens - self.prompt) - (0 if self.copy else self.kept)

    def limit(self, columns: int) -> int:
        """Returns the most tokens that this many columns can hold; `count(limit(n)) <= n < count(limit(n) + 1)`."""
        beyond = columns - self.whole - (self.kept if self.copy else 0)
        if beyond < 0:
            return min(columns * self.block_size, self.prompt - 1)
        return self.prompt + beyond * self.block_size + self.due - 1

    def freed(self) -> tuple[int, int]:
        """Returns the first and last (exclusive) column that is freed once the prompt is compressed."""
        return (0 if self.copy else self.kept), self.whole

    def column(self, block: Integers) -> Integers:
        """The columns of the request's kept and later blocks, numbered from 0."""
        if self.copy:
            return block + self.whole
        return np.where(block < self.kept, block, block - self.kept + self.whole)
