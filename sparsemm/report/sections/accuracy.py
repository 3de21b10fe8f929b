"""Accuracy of every method against what it keeps."""

from __future__ import annotations

from sparsemm.report import charts
from sparsemm.report.documents import counted, resampled
from sparsemm.report.findings import comparison, comparisons, difference, smallest_lossless, verdict
from sparsemm.report.page import bullets, chart, details, heading, pair, paragraph, table
from sparsemm.report.results import Results, Row
from sparsemm.report.sections.material import Material

NOT_EVALUATED = "Not evaluated yet."
TOO_FEW = "Of fewer than two pages there is no interval and no verdict; the line across is the full cache."
BARS = (
    "Bars are 95 % bootstrap intervals {}; the line and its band are the full cache. Differences are paired, so that "
    "one can be shown although bars overlap: the table has them."
)


def parts(material: Material) -> list[str]:
    """Per model and task: what follows, the chart, the numbers."""
    found = []
    for result in material.results:
        found.append(heading(result.name))
        if not result.evaluation:
            found.append(paragraph(NOT_EVALUATED, "note"))
        found.append(pair(*(_task(result, task) for task in result.tasks())))
    return found


def _task(result: Results, task: str) -> str:
    rows = [row for row in result.evaluation if row["task"] == task]
    said = [smallest_lossless(result, task), *(comparison(result, task, m) for m in comparisons(result))]
    sentences = [f"{task}: {sentence}" for sentence in said if sentence]
    shown = chart(
        charts.accuracy(result, task),
        f"Line chart: {task} accuracy of {result.key} against slots kept, one line per method. {' '.join(sentences)}",
        f"{result.name}, {task}, {counted(rows)}. {BARS.format(resampled(rows)) if rows[0]['ci_low'] else TOO_FEW}",
    )
    header = ["method", "minus sparsemm", "sparsemm is", "minus full", "against full", "accuracy", "95 % interval"]
    header += ["slots kept", "bytes"]
    listed = table(header, map(_row, rows), f"{result.label}: {task}, {rows[0]['metric'].replace('_', ' ')}")
    return shown + bullets(sentences) + details("All numbers", listed)


def _row(row: Row) -> list[str]:
    return [
        f"{row['method']}, B = {row['budget']}" if row["budget"] else row["method"],
        difference(row, "diff_vs_sparsemm"),
        verdict(row) if row["diff_ci_low"] else "-",
        difference(row, "diff_vs_full"),
        verdict(row, "diff_full") if row["diff_full_ci_low"] else "-",
        f"{float(row['value']):.3f}",
        charts.between(row).strip() or "-",
        f"{float(row['kept_slots']):.1f}",
        f"{int(row['bytes']):,}",
    ]
