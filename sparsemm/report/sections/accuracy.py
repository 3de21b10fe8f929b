"""Accuracy of every method against what it keeps."""

from __future__ import annotations

from sparsemm.report import charts
from sparsemm.report.findings import against_full, comparison, count_range, enough_from, rivals, signed, verdicts
from sparsemm.report.html import bullets, chart, details, heading, paragraph, table, tabs
from sparsemm.report.results import Accuracy, Model, Results
from sparsemm.report.sections import studies
from sparsemm.report.sections.method import resampled

NOT_EVALUATED = "Not evaluated yet."
TOO_FEW = "Of fewer than two pages there is no interval and no verdict; the line across is the full cache."
BARS = "Bars are 95 % bootstrap intervals {}; the line and its band are the full cache."
PAIRED = (
    "Differences are paired, so that one can be shown although bars overlap: the sentences and the table have them."
)


def parts(results: Results) -> list[str]:
    """Per model the charts, what follows and the numbers; then all budgets as one number, and all verdicts."""
    models = results.evidence or results.models
    return [
        tabs("accuracy", [(model.label, of_model(model)) for model in models]),
        *(studies.shown(one, models, "curve") for one in results.studies if one.name == "curve"),
        _verdicts(models),
    ]


def of_model(model: Model) -> str:
    """A chart with a panel per task, sentences, and the numbers folded."""
    if not model.accuracy:
        return paragraph(NOT_EVALUATED, "note")
    sentences, tables = [], []
    for task in model.tasks:
        rows = [row for row in model.accuracy if row.task == task]
        said = [against_full(model, task), *(comparison(model, task, method) for method in rivals(model))]
        sentences.append(heading(f"{task}: {_counted(rows)}", 4) + bullets(said))
        tables.append(_numbers(model, task, rows))
    known = any(row.accuracy.low is not None for row in model.accuracy)
    caption = f"{BARS.format(resampled(model.accuracy))} {PAIRED}" if known else TOO_FEW
    alt = f"Line charts: accuracy of {model.key} against slots kept, a panel per task and a line per method."
    return (
        chart(charts.accuracy(model), alt, f"{model.label}. {caption}")
        + details("What the intervals say", *sentences)
        + details("All numbers", *tables)
    )


def _counted(rows: list[Accuracy]) -> str:
    """How many pages and questions rows are about."""
    asked = count_range({row.n for row in rows}, "question")
    pages = {row.pages for row in rows if row.pages}
    return f"{asked} about {count_range(pages, 'page')}" if pages else asked


def _numbers(model: Model, task: str, rows: list[Accuracy]) -> str:
    header = ["method", "accuracy", "slots kept", "bytes", "sparsemm minus it", "sparsemm is", "it minus full", "it is"]
    cells = [
        [
            f"{row.method}, B = {row.budget}" if row.budget else row.method,
            row.accuracy.text(),
            f"{row.kept_slots:.1f}",
            f"{row.bytes:,}",
            signed(row.gain),
            row.gain.verdict or "-" if row.gain else "-",
            signed(row.against_full),
            row.against_full.verdict or "-" if row.against_full else "-",
        ]
        for row in rows
    ]
    return table(header, cells, f"{model.label}: {task}, {rows[0].metric.replace('_', ' ')}")


def _verdicts(models: list[Model]) -> str:
    """At how many budgets sparsemm is better, undecided or worse, for every model, task and method."""
    others = list(dict.fromkeys(method for model in models for method in rivals(model)))
    rows = []
    for model in models:
        for task in model.tasks:
            counts = []
            for method in others:
                found = verdicts(model, task, method)
                words = [str(len(found.get(word, ()))) for word in ("better", "no difference shown", "worse")]
                counts.append(" / ".join(words) if found else "-")
            enough = enough_from(model, task)
            rows.append([f"{model.label}, {task}", str(enough.budget) if enough else "none", *counts])
    header = ["model and task", "enough from B =", *(f"vs {method}" for method in others)]
    caption = (
        "sparsemm: from which budget on it is not shown worse than the full cache; and against every method, budgets "
        "at "
        "which it is better / undecided / worse"
    )
    return details("Verdicts budget by budget", table(header, rows, caption)) if rows else ""
