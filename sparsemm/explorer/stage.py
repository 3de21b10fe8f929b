"""The explore stage: writes one file per model for the report's explorer, so that the report runs no model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparsemm.explorer.packing import pack
from sparsemm.explorer.pictures import method_pictures, views
from sparsemm.explorer.reading import Reading, read_pages, too_much_to_load
from sparsemm.files import write_json
from sparsemm.params import Params
from sparsemm.scores import ScoreTable


def run(params: Params, key: str, root: Path = Path(".")) -> None:
    """Writes artifacts/explorer/<key>.json: what a model's heads attend to on some pages, or why there are no pages.

    Raises BudgetError or DataError if the budgets or the evaluation pages are missing, ModelError if the checkpoint is
    not the one in params.yaml, and ScoreTableError if the score table is missing or belongs to another model.
    """
    params, folder = params.of(key), root / "artifacts"
    table = ScoreTable.load(folder / "scores" / f"{key}.safetensors")
    reason = too_much_to_load(params.models[key])
    pages = [] if reason else read_pages(params, key, table, root)
    write_json(folder / "explorer" / f"{key}.json", contents(pages, table, reason))


def contents(pages: list[Reading], table: ScoreTable, reason: str | None = None) -> dict[str, Any]:
    """Returns the JSON values of the explorer's file, which `sparsemm/report/explorer.js` reads.

    Args:
        pages: pages that the model has read.
        table: score table of the model.
        reason: why no page was read, if none was.
    """
    return {
        "reason": None if pages else reason or "the evaluation set has no page",
        "hits": table.hits.tolist(),
        "tokens": table.header.get("tokens"),
        "kvHeads": table.header["num_kv_heads"],
        "pages": [pack(page, table) for page in pages],
        "method": method_pictures(pages[0], table) if pages else [],
        "views": views(pages[0], table) if pages else None,
    }
