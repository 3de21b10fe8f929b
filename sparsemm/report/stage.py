"""The report stage: read what the other stages wrote, draw it, say what follows from it."""

from __future__ import annotations

from pathlib import Path

from sparsemm.errors import DataError
from sparsemm.files import atomic_path
from sparsemm.params import Params
from sparsemm.progress import progress
from sparsemm.report import figures
from sparsemm.report.explorer import Seen
from sparsemm.report.looking import Looking, looking
from sparsemm.report.page import page
from sparsemm.report.results import Results, read_results
from sparsemm.report.sections import Material, written

TITLE = "SparseMM: visual heads and KV-cache budgets"


def run(params: Params, root: Path = Path(".")) -> None:
    """Write artifacts/report/index.html, and figures as PNG under artifacts/report/figures.

    Raises:
        DataError: if there is no model, or a table is not what its stage writes.
        BudgetError: if a model has no budgets.
        ScoreTableError: if a model has no score table, or another model's.
    """
    if not params.models:
        raise DataError("no model to report on", where="params.yaml: models", hint="sparsemm models add <checkpoint>")
    results = [read_results(params, key, root) for key in params.models]
    seen: dict[str, list[Looking] | str] = {}
    for result in progress(results, len(results), "report: heads on a page"):
        seen[result.key] = looking(params, result.key, result.table, root)
    folder = root / "artifacts" / "report"
    _write_figures(folder / "figures", results, seen)
    contents, parts = written(Material(params, results, seen))
    with atomic_path(folder / "index.html") as temporary:
        temporary.write_text(page(TITLE, contents, *parts), encoding="utf-8")


def _write_figures(folder: Path, results: list[Results], seen: Seen) -> None:
    images = {"score-curve": figures.share_curve(results)}
    for result in results:
        images |= dict(figures.drawn(result, seen[result.key]))
    for name, image in images.items():
        with atomic_path(folder / f"{name}.png") as temporary:
            temporary.write_bytes(image)
    for left in set(folder.glob("*.png")) - {folder / f"{name}.png" for name in images}:
        left.unlink()  # of a model that is gone: the same inputs give the same folder
