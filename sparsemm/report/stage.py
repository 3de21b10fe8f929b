"""The report stage: read what the other stages wrote, draw it, say what follows from it."""

from __future__ import annotations

from pathlib import Path

from sparsemm.errors import DataError
from sparsemm.files import atomic_path
from sparsemm.params import Params
from sparsemm.progress import progress
from sparsemm.report import agreement, covariates, efficiency, sections
from sparsemm.report.looking import Looking, looking
from sparsemm.report.page import page
from sparsemm.report.results import read_results

TITLE = "SparseMM: visual heads and KV-cache budgets"


def run(params: Params, root: Path = Path(".")) -> None:
    """Write artifacts/report/index.html, and its figures as PNG under artifacts/report/figures.

    Raises:
        DataError: if there is no model, or a table is not what its stage writes.
        ScoreTableError: if a model has no score table, or another model's.
    """
    if not params.models:
        raise DataError("no model to report on", where="params.yaml: models", hint="sparsemm models add <checkpoint>")
    results = [read_results(params, key, root) for key in params.models]
    pictures: dict[str, Looking | str] = {}
    for result in progress(results, len(results), "report: heads on a page"):
        pictures[result.key] = looking(params, result.key, result.table, root)
    images: dict[str, bytes] = {}
    parts = [sections.summary(results), sections.heads(results, images)]
    parts += [sections.model(result, pictures[result.key], images) for result in results]
    agreed = agreement.agreement(params, results, root, images)
    hit = covariates.covariates(params, results, root, images)
    timed = efficiency.shapes(params, root, images)
    parts += [*([agreed] if agreed else []), *([hit] if hit else []), timed, sections.method_notes(params, results)]
    models = [(sections.anchor(result), result.name) for result in results]
    contents = [
        ("found", "What was found"),
        ("heads", "Heads"),
        *models,
        *[(agreement.ANCHOR, "Other data sets")] * bool(agreed),
        *[(covariates.ANCHOR, "What is hit")] * bool(hit),
        *[("efficiency", "7B sizes")] * bool(timed),
        ("how", "How it was measured"),
    ]
    folder = root / "artifacts" / "report"
    for name, image in images.items():
        with atomic_path(folder / "figures" / f"{name}.png") as temporary:
            temporary.write_bytes(image)
    for left in set((folder / "figures").glob("*.png")) - {folder / "figures" / f"{name}.png" for name in images}:
        left.unlink()  # of a model that is gone: the same inputs give the same folder
    with atomic_path(folder / "index.html") as temporary:
        temporary.write_text(page(TITLE, contents, *parts), encoding="utf-8")
