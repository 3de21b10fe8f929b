"""Shows the accuracy of every method against the slots that it keeps."""

from __future__ import annotations

from sparsemm.report import charts
from sparsemm.report.findings import (
    against_full,
    comparison,
    count_range,
    enough_from,
    refusals,
    rivals,
    signed,
    verdicts,
)
from sparsemm.report.html import bullets, chart, details, heading, paragraph, table, tabs
from sparsemm.report.results import Accuracy, Model, Results
from sparsemm.report.sections import all_studies
from sparsemm.report.sections.method import resampled
from sparsemm.report.style import method_label

NOT_EVALUATED = "Not evaluated yet."
TOO_FEW = "Fewer than two pages give no interval and no verdict. The horizontal line is the full cache."
BARS = "Bars are 95 % bootstrap intervals {}; the line with its band is the full cache."
PAIRED = "The sentences and the table give paired differences, which can be significant although bars overlap."


def parts(results: Results) -> list[str]:
    """Shows charts, verdicts and numbers per model, then the mean over all budgets, and all verdicts."""
    models = results.evidence or results.models
    return [
        tabs("accuracy", [(model.label, of_model(model)) for model in models]),
        *(all_studies.shown(one, models, "curve") for one in results.studies if one.name == "curve"),
        _verdicts(models),
    ]


def of_model(model: Model) -> str:
    """Shows a chart with a panel per task, and sentences and numbers folded."""
    if not model.accuracy:
        return paragraph(NOT_EVALUATED, "note")
    sentences, tables = [], []
    for task in model.tasks:
        rows = [row for row in model.accuracy if row.task == task]
        lines = [against_full(model, task), *(comparison(model, task, method) for method in rivals(model))]
        sentences.append(heading(f"{task}: {_counted(rows)}") + bullets(lines))
        tables.append(_numbers(model, task, rows))
    intervals = any(row.accuracy.low is not None for row in model.accuracy)
    caption = f"{BARS.format(resampled(model.accuracy))} {PAIRED}" if intervals else TOO_FEW
    if model.refused:
        names = ", ".join(dict.fromkeys(method_label(row.method) for row in model.refused))
        caption += f" Refused where the prompts are too long: {names}; “All numbers” says at which budgets."
    alt = f"Line charts: accuracy of {model.key} against slots kept, a panel per task and a line per method."
    return (
        chart(charts.accuracy(model), alt, f"{model.label}. {caption}")
        + details("What the intervals show", *sentences)
        + details("All numbers", *tables)
    )


def _counted(rows: list[Accuracy]) -> str:
    """Formats the numbers of questions and pages of some rows."""
    questions = count_range({row.n for row in rows}, "question")
    pages = {row.pages for row in rows if row.pages}
    return f"{questions} about {count_range(pages, 'page')}" if pages else questions


def _numbers(model: Model, task: str, rows: list[Accuracy]) -> str:
    header = ["method", "accuracy", "slots kept", "bytes", "sparsemm minus it", "sparsemm is", "it minus full", "it is"]
    cells = [
        [
            f"{method_label(row.method)}, B = {row.budget}" if row.budget else row.method,
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
    refused = [row for row in model.refused if row.task == task]
    cells += [[f"{method_label(row.method)}, {row.place}", "refused", *("-" for _ in header[2:])] for row in refused]
    numbers = table(header, cells, f"{model.label}: {task}, {rows[0].metric.replace('_', ' ')}")
    return numbers + bullets(refusals(refused))


def _verdicts(models: list[Model]) -> str:
    """Counts the budgets at which sparsemm is better, undecided or worse, for every model, task and method."""
    methods = list(dict.fromkeys(method for model in models for method in rivals(model)))
    rows = []
    for model in models:
        for task in model.tasks:
            counts = []
            for method in methods:
                groups = verdicts(model, task, method)
                numbers = [str(len(groups.get(word, ()))) for word in ("better", "no difference shown", "worse")]
                counts.append(" / ".join(numbers) if groups else "-")
            enough = enough_from(model, task)
            rows.append([f"{model.label}, {task}", str(enough.budget) if enough else "none", *counts])
    header = ["model and task", "enough from B =", *(f"vs {method_label(method)}" for method in methods)]
    caption = (
        "sparsemm: the budget from which on it is not shown to be worse than the full cache, and for every method the "
        "numbers of budgets at which it is better / undecided / worse"
    )
    return details("Verdicts budget by budget", table(header, rows, caption)) if rows else ""
