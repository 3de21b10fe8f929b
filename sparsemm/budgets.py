"""Splits a budget among KV heads by their scores: a window, a uniform part and a scored part, with exact totals."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsemm.errors import BudgetError

Scores = NDArray[np.float64]
Slots = NDArray[np.int64]

MOST_POWER = 16.0  # of scores; beyond it nearly all slots go to a single head


def normalized(scores: Scores, budget: int, window: int, rho: float = 0.0) -> Scores:
    """Returns scores as shares with sum 1, even ones if all scores are zero.

    Raises BudgetError if the scores or the parameters are invalid.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 2 or scores.size == 0:
        raise BudgetError(f"scores have shape {scores.shape}", hint="pass a (layers, KV heads) matrix")
    if not np.isfinite(scores).all() or (scores < 0).any():
        raise BudgetError("scores must be finite and not negative", hint="chase the model again")
    if not 1 <= window <= budget:
        raise BudgetError(f"budget {budget} with window {window}", hint="choose 1 <= window <= budget")
    if not 0.0 <= rho <= 1.0:
        raise BudgetError(f"rho is {rho}", hint="choose rho between 0 and 1")
    total = scores.sum()
    return scores / total if total > 0 else np.full_like(scores, 1.0 / scores.size)


def raised(scores: Scores, power: float) -> Scores:
    """Returns scores to a power, up to a common factor, which no split of slots depends on; for power 1 the same."""
    largest = np.max(scores, initial=0.0)
    if power == 1.0 or not 0.0 < largest < np.inf or (scores < 0).any():  # impossible scores are refused later
        return scores
    return (scores / largest) ** power  # at most 1, so that nothing overflows


def largest_remainder(shares: NDArray[np.float64], total: int) -> Slots:
    """Returns integers that sum to `total`, in proportion to `shares` (any shape, not negative, sum above zero).

    Each entry is its exact share rounded down, or up for the largest remainders, the lowest index first among equals.
    """
    exact = shares / shares.sum() * total
    floors = np.floor(exact).astype(np.int64)
    missing = total - int(floors.sum())
    order = np.argsort(-(exact - floors).ravel(), kind="stable")
    flat = floors.ravel().copy()
    if missing >= 0:
        flat[order[:missing]] += 1
    else:  # a rounding error raised a floor: lower it where the remainder is smallest
        candidates = [i for i in order[::-1] if flat[i] > 0][:-missing]
        flat[candidates] -= 1
    return flat.reshape(shares.shape)


def fill(shares: NDArray[np.float64], total: int, room: Slots) -> Slots:
    """Splits `total` in proportion to `shares`, at most `room` each; the excess of a full entry goes to the others.

    Args:
        shares: weights, not negative, any shape. If the weights of all entries with room are zero, the split is even.
        total: at most `room.sum()`.
        room: int64, same shape, the maximum of each entry.

    Returns:
        int64, same shape, sum exactly `total`.

    Raises:
        BudgetError: if `total` does not fit into `room`.
    """
    if total > int(room.sum()) or total < 0:
        raise BudgetError(f"{total} slots do not fit into {int(room.sum())}")
    taken = np.zeros_like(room)
    while total > 0:
        space = room - taken
        open_entries = space > 0
        weights = np.where(open_entries, shares, 0.0)
        if weights.sum() <= 0:
            weights = open_entries.astype(np.float64)
        exact = weights / weights.sum() * total
        full = open_entries & (exact >= space)
        if full.any():  # these fill up; the rest is split again among the others
            taken[full] = room[full]
            total -= int(space[full].sum())
            continue
        taken += largest_remainder(weights, total)
        break
    # Rounding up may exceed a maximum by one slot; the excess is split again.
    over = np.maximum(taken - room, 0)
    if over.any():
        taken = taken - over
        taken += fill(shares, int(over.sum()), room - taken)
    return taken


def allocate(scores: Scores, budget: int, window: int, rho: float, prompt_length: int | None = None) -> Slots:
    """Returns the slots of each KV head, window included (arXiv 2506.05344, section 3.2, with exact totals).

    b[l,h] = w + r + s[l,h] * (1 - rho) * (B - w) * L * H with r = rho * (B - w) and s normalised to sum 1, as
    integers by largest remainder. With a prompt of S tokens no head gets more than S; its excess goes to the others
    in proportion to their scores.

    Args:
        scores: (L, Hkv) float64, not negative; all zero means uniform.
        budget: B, mean slots per KV head, window included.
        window: w, newest tokens, which every head keeps.
        rho: share of the slots beyond the window that is split evenly.
        prompt_length: S in tokens, or None for no cap.

    Returns:
        (L, Hkv) int64 whose sum is exactly L * Hkv * min(B, S).

    Raises:
        BudgetError: if the scores or the parameters are invalid.
    """
    share = normalized(scores, budget, window, rho)
    heads = share.size
    if prompt_length is not None and prompt_length <= budget:
        return np.full(share.shape, max(prompt_length, 0), dtype=np.int64)
    beyond = (budget - window) * heads
    uniform = int(rho * (budget - window))
    slots = np.full(share.shape, window + uniform, dtype=np.int64)
    # The fraction of r below one slot is not lost: it is a constant term of the weights that split the rest.
    rest = beyond - uniform * heads
    weights = (rho * (budget - window) - uniform) + (1.0 - rho) * beyond * share
    most = prompt_length if prompt_length is not None else budget * heads
    return slots + fill(weights, rest, most - slots)


def allocate_paper(scores: Scores, budget: int, window: int, rho: float, prompt_length: int | None = None) -> Slots:
    """Returns the slots as the public code computes them: heads are rounded one by one, and overflow is lost.

    base = B - w; min = int(base * rho); cap = round(s * (base - min) * L * H + min); slots = cap + w; a head keeps
    at most S. Nothing is compressed when base exceeds S - w.

    Arguments, result and errors are those of `allocate`, but the sum differs.
    """
    share = normalized(scores, budget, window, rho)
    base = budget - window
    if prompt_length is not None and base > prompt_length - window:
        return np.full(share.shape, max(prompt_length, 0), dtype=np.int64)
    smallest = int(base * rho)
    slots = np.round(share * ((base - smallest) * share.size) + smallest).astype(np.int64) + window
    return slots if prompt_length is None else np.minimum(slots, prompt_length)


@dataclass(frozen=True)
class Plan:
    """The result of the allocate stage: settings (window, rho, mode), and slots per KV head at every budget."""

    settings: dict[str, Any]
    slots: dict[int, Slots]

    @property
    def budgets(self) -> list[int]:
        """Mean slots per KV head, rising."""
        return sorted(self.slots)


def load_budgets(path: str | Path) -> Plan:
    """Reads the JSON file of the allocate stage. Raises BudgetError if it is missing or malformed."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
        settings = {key: value[key] for key in ("window", "rho", "mode")}
        slots = {int(budget): np.array(rows, dtype=np.int64) for budget, rows in value["slots"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        hint = "run the allocate stage first"
        raise BudgetError(f"cannot be read: {error!r}", where=str(path), hint=hint) from error
    return Plan(settings, slots)
