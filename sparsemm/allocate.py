"""The allocate stage: score table -> slots per KV head at every budget."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sparsemm.budgets import allocate, allocate_paper
from sparsemm.files import write_json
from sparsemm.params import Params
from sparsemm.scores import ScoreTable


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
    scores = np.asarray(table.to_kv(table.header["num_kv_heads"]))[layers]
    split = allocate if settings.mode == "exact" else allocate_paper
    slots = {budget: split(scores, budget, settings.window, settings.rho) for budget in settings.budgets}
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
