"""Slots per KV head from a score table: as a function, and as the stage `allocate` at every budget of params.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sparsemm.budgets import Slots, allocate, allocate_paper
from sparsemm.errors import BudgetError
from sparsemm.files import write_json
from sparsemm.params import Params
from sparsemm.scores import ScoreTable


def allocate_budgets(
    scores: ScoreTable | NDArray[np.float64],
    budget: int,
    *,
    window: int = 32,
    rho: float = 0.1,
    mode: Literal["exact", "paper"] = "exact",
    prompt_length: int | None = None,
) -> Slots:
    """Returns how many slots every KV head gets: what `compressed_cache(model, "sparsemm", budget, scores)` keeps.

    Args:
        scores: a score table, or (L, Hkv) scores of KV heads. Of a table only full-attention layers get budgets.
        budget: mean slots per KV head, window included.
        window: newest tokens of the prompt, which every head keeps.
        rho: share of the slots beyond the window that is split evenly.
        mode: "exact" totals, or those of the public code ("paper").
        prompt_length: tokens of the prompt, which no head can have more slots than; None for no limit.

    Returns:
        (L, Hkv) int64; in mode "exact" the sum is L * Hkv * min(budget, prompt_length).

    Raises:
        BudgetError: if the scores or the parameters are invalid.
    """
    if mode not in ("exact", "paper"):
        raise BudgetError(f"mode {mode!r} is unknown", hint="use exact or paper")
    if isinstance(scores, ScoreTable):
        scores = scores.to_kv(scores.header["num_kv_heads"])[scores.full_layers()]
    split = allocate if mode == "exact" else allocate_paper
    return split(np.asarray(scores), budget, window, rho, prompt_length)


def run(params: Params, key: str, root: Path = Path("."), folder: str = "") -> None:
    """Writes artifacts/budgets/<key>.json: settings, and the slots (layers, KV heads) for prompts longer than any head.

    Only full-attention layers have budgets; "layers" lists their numbers.

    Args:
        folder: below artifacts/scores and artifacts/budgets; "text" for the scores of `sparsemm chase --text`.

    Raises:
        ParamsError: if the model is unknown.
        ScoreTableError: if the score table is missing or damaged.
        BudgetError: if a budget cannot be met.
    """
    settings = params.of(key).allocate
    table = ScoreTable.load(root / "artifacts" / "scores" / folder / f"{key}.safetensors")
    layers = table.full_layers()
    options = settings.model_dump(include={"window", "rho", "mode"})
    slots = {budget: allocate_budgets(table, budget, **options) for budget in settings.budgets}
    summary = {
        str(budget): {"largest": int(s.max()), "smallest": int(s.min()), "total": int(s.sum())}
        for budget, s in slots.items()
    }
    value = {
        "window": settings.window,
        "rho": settings.rho,
        "mode": settings.mode,
        "layers": layers,
        "slots": {str(budget): s.tolist() for budget, s in slots.items()},
        "summary": summary,
    }
    write_json(root / "artifacts" / "budgets" / folder / f"{key}.json", value)
