"""Shows every study: its question, its conclusion over all models, its charts and its numbers."""

from __future__ import annotations

from collections.abc import Sequence

from sparsemm.published import SOURCE, beside
from sparsemm.report import charts
from sparsemm.report.findings import count_range, refusals, signed
from sparsemm.report.html import bullets, chart, details, heading, paragraph, table, tabs
from sparsemm.report.results import Model, Results, StudyResults
from sparsemm.studies import Study, StudyRow

NO_CONCLUSION = "There is no conclusion yet, because no model that counts as evidence has an interval here."
ALL_MODELS = "Differences with 95 % intervals. If an interval includes zero, no difference is shown."


def parts(results: Results) -> list[str]:
    """Shows all studies but `curve`, which the accuracy section shows, then the published numbers beside ours."""
    models = results.evidence or results.models
    others = [one for one in results.studies if one.name != "curve"]
    opened = [shown(one, models, one.name) for one in others if one.study.open]
    folded = "".join(f"<div>{shown(one, models, one.name)}</div>" for one in others if not one.study.open)
    return [*opened, f'<div class="cards">{folded}</div>' if folded else "", _published(results)]


def shown(one: StudyResults, models: Sequence[Model], anchor: str) -> str:
    """Shows one study: title, conclusion, question, its chart over all models, and every model folded."""
    study = one.study
    rows = [row for model in models for row in one.rows.get(model.key, ())]
    conclusion = study.conclusion(rows)
    over_all = charts.differences(one, models)
    drawn = chart(over_all, f"{study.title}: {conclusion}", ALL_MODELS) if over_all else ""
    panels = [(model.label, of_model(one, model)) for model in models if model.key in one.rows]
    open_now = study.open or one.name == "curve"
    folded = [] if open_now else [drawn]
    return (
        heading(study.title, anchor=f"study-{anchor}")
        + paragraph(conclusion or NO_CONCLUSION, "conclusion")
        + paragraph(study.question, "quiet")
        + (drawn if open_now else "")
        + details("Charts and numbers", *folded, tabs(f"study-{anchor}", panels))
    )


def of_model(one: StudyResults, model: Model) -> str:
    """Shows a study's charts and numbers of one model."""
    rows = one.rows[model.key]
    alt = f"{one.study.title}: what was measured of {model.key}."
    drawn = one.study.drawn(rows)
    refused = one.refused.get(model.key, [])
    reasons = bullets(refusals(refused))
    picture = chart(charts.study_values(one, drawn), alt, f"{model.label}: {_behind(rows)}") if drawn else ""
    if one.study.tables is None:
        return picture + details("All numbers", _numbers(one.study, model, rows), reasons)
    shown = one.study.tables(rows, [row.method for row in refused])
    own = [table(each.header, each.rows, f"{model.label}: {each.caption}") for each in shown]
    return own[0] + picture + details("All numbers", *own[1:], reasons)


def _behind(rows: Sequence[StudyRow]) -> str:
    """Describes the number of samples and the kind of intervals."""
    counts = sorted({row.n for row in rows if row.n})
    if not counts:
        return "no interval."
    samples = count_range(counts, "sample")
    if counts[-1] < 2:
        return f"{samples}, no interval and no verdict."
    draws = " (and, for random methods, over draws)" if any((row.seeds or 1) > 1 for row in rows) else ""
    return f"{samples}, 95 % bootstrap intervals over pages{draws}; values without a bar have no interval."


def _numbers(study: Study, model: Model, rows: Sequence[StudyRow]) -> str:
    header = ["setting", "value", "n", "spread", "slots kept", "bytes", "difference", "verdict", "samples needed"]
    cells = [
        [
            _named(row),
            row.estimate.text(),
            _number(row.n),
            _number(row.spread) if (row.seeds or 1) > 1 else "",
            _number(row.kept_slots),
            "" if row.bytes is None else f"{row.bytes:,}",
            signed(row.difference) if row.difference else "",
            row.verdict or "",
            _number(row.needed),
        ]
        for row in rows
    ]
    what = "differences are paired; samples needed are for the precision set in params.yaml"
    caption = f"{study.title}, {model.label}: {what}"
    return table(header, cells, caption)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _named(row: StudyRow) -> str:
    """Names a row by its setting, task, condition, level and budget, and by what it is compared with."""
    at = [f"level {row.level:g}"] if row.level is not None else []
    at += [f"B = {row.budget}"] if row.budget is not None else []
    name = ", ".join(filter(None, (row.setting, row.task, row.condition, *at)))
    return f"{name}, against {row.against}" if row.against else name


def _published(results: Results) -> str:
    """Shows our numbers beside the published ones, for models, tasks, methods and budgets that both have."""
    header = ["task and method", "ours", "published", "ours minus published", "published metric"]
    tables = []
    for key, rows in next((one.rows for one in results.studies if one.name == "curve"), {}).items():
        known = [row for row in rows if row.ci_low is not None]
        cells = [
            [
                f"{row.task}, {row.setting}, B = {row.budget}",
                *(f"{row.value:.3f}", f"{value:.3f}"),
                # The paper does not give its number of pages, so the interval covers our samples alone.
                f"{row.value - value:+.3f} [{row.ci_low - value:+.3f}, {row.ci_high - value:+.3f}]",
                metric,
            ]
            for row, value, metric in beside(results.params.models[key].checkpoint, known)
        ]
        caption = f"{key}: ours and {SOURCE}; the interval covers our samples alone"
        tables += [table(header, cells, caption)] if cells else []
    return heading("Comparison with the published numbers") + "".join(tables) if tables else ""
