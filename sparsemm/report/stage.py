"""The report stage: reads what the other stages wrote and writes one page, and the tables of `dvc plots`."""

from __future__ import annotations

import csv
import subprocess
from pathlib import Path

from sparsemm import __version__
from sparsemm.errors import DataError
from sparsemm.files import atomic_path
from sparsemm.params import Params
from sparsemm.report import charts
from sparsemm.report.charts import Chart
from sparsemm.report.html import page, paragraph
from sparsemm.report.results import Results, read_results
from sparsemm.report.sections import written

TITLE = "SparseMM: visual heads and KV-cache budgets"
PAPER = "The method is that of SparseMM, arXiv 2506.05344 (https://arxiv.org/abs/2506.05344)."
PLOTTED = ("masking", "parts", "later", "looking", "sources", "confirm")  # studies among the ten charts of `dvc plots`
COLUMNS = ("panel", "series", "at", "value", "low", "high")


def run(params: Params, root: Path = Path(".")) -> None:
    """Write artifacts/report/index.html and artifacts/report/plots/*.csv.

    Raises:
        DataError: if there is no model, a model has no scores, or a file is not what its stage writes.
    """
    if not params.models:
        raise DataError("no model to report on", where="params.yaml: models", hint="sparsemm models add <checkpoint>")
    results = read_results(params, root)
    links, parts = written(results)
    text = page(TITLE, links, footer(results, root), *parts)
    folder = root / "artifacts" / "report"
    for name, chart in plots(results).items():
        write_plot(folder / "plots" / f"{name}.csv", chart)
    with atomic_path(folder / "index.html") as temporary:
        temporary.write_text(text, encoding="utf-8")


def plots(results: Results) -> dict[str, Chart | None]:
    """The ten charts of `dvc plots show`; None where there is nothing to draw yet."""
    models = results.evidence or results.models
    named = {one.name: one for one in results.studies}
    evaluated = [model for model in models if model.accuracy]
    timed = [model for model in models if model.timings]
    return {
        "accuracy": _joined([(model.label, charts.accuracy(model)) for model in evaluated]),
        "heads": charts.score_curves(models),
        "cost": _joined([(model.label, charts.cost(model.timings)) for model in timed]),
        **{name: charts.differences(named[name], models) if name in named else None for name in ("curve", *PLOTTED)},
    }


def _joined(named: list[tuple[str, Chart]]) -> Chart | None:
    """The panels of several models in one chart."""
    panels = [charts.renamed(panel, f"{name}: {panel.title}") for name, chart in named for panel in chart.panels]
    return Chart(panels) if panels else None


def write_plot(path: Path, chart: Chart | None) -> None:
    """Write the points of a chart as CSV, only the header where there is no chart."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(chart.rows() if chart else [])


def footer(results: Results, root: Path) -> str:
    """What the page was made with: the commit and its date, versions, and the paper."""
    named = [f"sparsemm {__version__}"]
    machines = [model.machine for model in results.models if model.machine.torch]
    named += [f"torch {machines[0].torch}, transformers {machines[0].transformers} (profiles)"] if machines else []
    return paragraph(f"Made with {', '.join(named)}{commit(root)}. {PAPER}", "quiet")


def commit(root: Path) -> str:
    """The commit that is checked out and its date; empty outside a repository. The same commit gives the same page."""
    command = ["git", "-C", str(root), "log", "-1", "--format=%h of %cs"]
    try:
        known = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f", on top of commit {known}" if known else ""
