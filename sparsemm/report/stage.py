"""The report stage: writes the HTML page and the tables of `dvc plots` from the files of the other stages."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

from sparsemm import __version__
from sparsemm.errors import DataError
from sparsemm.files import atomic_path, write_csv
from sparsemm.params import Params
from sparsemm.report import charts
from sparsemm.report.charts import Chart
from sparsemm.report.html import link, page, paragraph
from sparsemm.report.results import Results, read_results
from sparsemm.report.sections import written

TITLE = "SparseMM: visual heads and KV-cache budgets"
PAPER = "https://arxiv.org/abs/2506.05344"
PLOTTED = ("masking", "parts", "later", "looking", "sources")  # studies among the ten charts of `dvc plots`
COLUMNS = ("panel", "series", "at", "value", "low", "high")


def run(params: Params, root: Path = Path(".")) -> None:
    """Writes artifacts/report/index.html and artifacts/report/plots/*.csv.

    Raises DataError if there is no model, a model has no scores, or a file is malformed.
    """
    if not params.models:
        hint = "add one with `sparsemm models add <checkpoint>`"
        raise DataError("no model to report on", where="params.yaml: models", hint=hint)
    results = read_results(params, root)
    links, parts = written(results)
    text = page(TITLE, links, footer(results, root), *parts)
    folder = root / "artifacts" / "report"
    for name, chart in plots(results).items():
        write_csv(folder / "plots" / f"{name}.csv", COLUMNS, chart.rows() if chart else [])
    with atomic_path(folder / "index.html") as temporary:
        temporary.write_text(text, encoding="utf-8")


def plots(results: Results) -> dict[str, Chart | None]:
    """Returns the ten charts of `dvc plots show`; a chart is None if there is nothing to draw yet."""
    models = results.evidence or results.models
    studies = {result.name: result for result in results.studies}
    evaluated = [model for model in models if model.accuracy]
    timed = [model for model in models if model.timings]
    return {
        "accuracy": _joined([(model.label, charts.accuracy(model)) for model in evaluated]),
        "heads": charts.score_curves(models),
        "cost": _joined([(model.label, charts.cost(model.timings)) for model in timed]),
        "recipes": charts.recipes(models),
        **{n: charts.differences(studies[n], models) if n in studies else None for n in ("curve", *PLOTTED)},
    }


def _joined(labelled: list[tuple[str, Chart]]) -> Chart | None:
    """Joins the panels of several models in one chart."""
    panels = [replace(panel, title=f"{name}: {panel.title}") for name, chart in labelled for panel in chart.panels]
    return Chart(panels) if panels else None


def footer(results: Results, root: Path) -> str:
    """Returns the footer: date and name of the commit, versions, and a link to the paper."""
    versions = [f"sparsemm {__version__}"]
    machines = [model.machine for model in results.models if model.machine.torch]
    versions += [f"torch {machines[0].torch}, transformers {machines[0].transformers} (profiles)"] if machines else []
    text = f"Made {commit(root)}with {', '.join(versions)}."
    return paragraph(text, "quiet") + link("The method is that of SparseMM, arXiv 2506.05344.", PAPER)


def commit(root: Path) -> str:
    """Describes the checked-out commit and its date, not the present time, so that a page can be reproduced.

    The text is empty outside a repository.
    """
    command = ["git", "-C", str(root), "log", "-1", "--format=on %cs on top of commit %h"]
    try:
        head = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f"{head}, " if head else ""
