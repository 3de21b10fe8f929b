"""Recipes as the tune stage would have written them."""

from __future__ import annotations

from sparsemm.recipes import Choice, Comparison, Data, Recipe

DIFFERENCES = {"better": (0.1, 0.05, 0.15), "no difference shown": (0.0, -0.1, 0.1), "worse": (-0.1, -0.15, -0.05)}


def comparison(method, task, verdict, against="snapkv", budget=None, value=0.5):
    """A row of evidence with that verdict."""
    diff, low, high = DIFFERENCES[verdict]
    measured = {"kept_slots": 12.0, "bytes": 96} if budget else {"kept_slots": None, "bytes": None}
    interval = {"low": value - 0.1, "high": value + 0.1, "diff_low": low, "diff_high": high}
    row = {"method": method, "against": against, "task": task, "budget": budget, "value": value, "diff": diff}
    return Comparison(**row, **interval, **measured, verdict=verdict, pages=16)


def recipe(table, verdict="better", method="sparsemm+peak", **options):
    """A recipe of this score table, with one method for both scenarios."""
    evidence = tuple(comparison(method, task, verdict) for task in ("all tasks", "read"))
    choice = Choice(
        name=method,
        method=method,
        options={"window": 4, "rho": 0.4} | options,
        winner=method,
        candidates=4,
        failed=0,
        why=f"{method} won the search.",
        evidence=evidence,
    )
    later = choice.model_copy(update={"method": "snapkv", "name": "snapkv", "options": {"window": 8}, "evidence": ()})
    return Recipe(
        format=1,
        model=table.header["model"],
        revision=table.header["revision"],
        fingerprint=table.header["fingerprint"],
        scores=table.digest(),
        data=Data(dataset="evaluation", sha256="0" * 64, search=32, confirmation=16),
        budgets=(12, 24),
        scenarios={"known": choice, "later": later},
        versions={"sparsemm": "0.1.0"},
    )
