"""The report stage: read what the other stages wrote, draw it, say what follows from it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sparsemm.errors import DataError
from sparsemm.files import atomic_path
from sparsemm.params import Params
from sparsemm.progress import progress
from sparsemm.report import figures
from sparsemm.report.agreement import heat_maps, read_agreement
from sparsemm.report.covariates import bars
from sparsemm.report.efficiency import latency, read_shapes, stars
from sparsemm.report.looking import Looking, looking
from sparsemm.report.page import page
from sparsemm.report.results import read_results
from sparsemm.report.sections import Material, written
from sparsemm.report.studies import read_studies, shown
from sparsemm.report.study_figures import drawn

TITLE = "SparseMM: visual heads and KV-cache budgets"


def run(params: Params, root: Path = Path(".")) -> None:
    """Write artifacts/report/index.html, and figures as PNG under artifacts/report/figures.

    Raises:
        DataError: if there is no model, or a file is not what its stage writes.
        BudgetError: if a model has no budgets.
        ScoreTableError: if a model has no score table, or another model's.
    """
    if not params.models:
        raise DataError("no model to report on", where="params.yaml: models", hint="sparsemm models add <checkpoint>")
    results = [read_results(params, key, root) for key in params.models]
    agreements = {result.key: read_agreement(params, result, root) for result in results}
    shapes, studies = read_shapes(params, root), read_studies(params, root)
    seen: dict[str, list[Looking] | str] = {}
    for result in progress(results, len(results), "report: heads on a page"):
        seen[result.key] = looking(params, result.key, result.table, root)
    material = Material(params, results, seen, agreements, shapes, studies)
    folder = root / "artifacts" / "report"
    _write_figures(folder / "figures", dict(_figures(material)))
    contents, parts = written(material)
    with atomic_path(folder / "index.html") as temporary:
        temporary.write_text(page(TITLE, contents, *parts), encoding="utf-8")


def _figures(material: Material) -> Iterator[tuple[str, bytes]]:
    """Name and PNG of everything that is drawn."""
    yield "score-curve", figures.share_curve(material.results)
    for result in material.results:
        yield from figures.drawn(result, material.seen[result.key])
        if tables := material.agreements[result.key].tables:
            every = {material.params.chase.dataset: result.table, **tables}
            yield f"agreement-{result.key}", heat_maps(every)
        if rates := material.agreements[result.key].rates:
            yield f"covariates-{result.key}", bars(rates)
    for timed in material.shapes:
        yield f"latency-{timed.name}", latency(timed.name, timed.rows, stars(timed))
    names = {result.key: result.name for result in material.results}
    for study, models in material.studies.items():
        for key, rows in models.items():
            yield f"study-{study}-{key}", drawn(names[key], shown(study, rows))


def _write_figures(folder: Path, images: dict[str, bytes]) -> None:
    for name, image in images.items():
        with atomic_path(folder / f"{name}.png") as temporary:
            temporary.write_bytes(image)
    for left in set(folder.glob("*.png")) - {folder / f"{name}.png" for name in images}:
        left.unlink()  # of a model that is gone: the same inputs give the same folder
