"""The studies: what was asked, what the intervals say, and all numbers; published numbers beside ours."""

from __future__ import annotations

from collections.abc import Sequence

from sparsemm.published import SOURCE, beside
from sparsemm.report.findings import VERDICTS
from sparsemm.report.forest import of_models
from sparsemm.report.page import bullets, chart, contents, details, heading, pair, paragraph, table
from sparsemm.report.results import Row
from sparsemm.report.search import best_of, gains, mean_areas
from sparsemm.report.sections.material import Material
from sparsemm.report.studies import claims, compared, shown, tally
from sparsemm.report.study_charts import charts
from sparsemm.report.study_figures import panels

SHORT = 12  # lines of a table that is not folded
SHOWN = 2  # charts of a model and a study that are not folded
EVIDENCE = "differences of all tasks, levels and budgets; right of zero is better"
TEXT = {
    "curve": (
        "Accuracy against budget, as one number",
        "The area under accuracy over log2 B, divided by its width, is a mean accuracy over all budgets: one "
        "comparison per method, not one per budget.",
    ),
    "length": (
        "Long answers",
        "Does a method lose more where the reference answer is long? Areas as above, within groups of answers.",
    ),
    "cost": ("Accuracy and latency together", "Both at the profiled budget; times are medians and have no interval."),
    "masking": (
        "Visual heads switched off",
        "The best heads by score off, against as many random heads, anywhere and in the same layers. Level is the "
        "share of heads. A head whose output is zero is gone; one whose query is zero looks at everything alike. "
        "Random heads are drawn anew for every page, several times; spread is the range over these runs.",
    ),
    "rho": ("How much is split evenly", "rho is the share of the slots beyond the window that all heads get alike."),
    "parts": (
        "What each part of a budget gives",
        "At equal slots: the newest tokens alone, with slots shared evenly, with slots by score.",
    ),
    "later": (
        "When the question comes later",
        "A method that watches the question keeps what it needs. Here the cache is compressed before the question is "
        "there: after the page, after a neutral prompt, or after another question about the page (a second turn). The "
        "full cache shows what the wording alone costs.",
    ),
    "holding": (
        "Eviction while answering",
        "The budget holds for the answer too: each new token takes the place of the weakest one.",
    ),
    "storage": (
        "8 bits",
        "Keys and values in 8 bits with a scale per row: at equal slots, and with as many more slots as fit the same "
        "bytes.",
    ),
    "sources": (
        "Scores from other pages",
        "Do other data sets rank the heads alike, and do their budgets serve as well? Halves of the calibration set "
        "show what other pages of the same kind change; random scores, what a wrong table costs.",
    ),
    "looking": (
        "What visual and other heads look at",
        "Share of a head's attention on the word about to be said and on the page, of the best heads by score, of "
        "heads in the middle of the ranking and of the last ones, on pages of the evaluation's data set.",
    ),
    "search": (
        "A better allocation than the paper's",
        "Other ways from the same scores to slots, at equal slots, on the pages of the search alone. `sparsemm` is the "
        "paper's allocation with exact totals. `overflow lost` keeps fewer slots and cannot be chosen. The figure and "
        "the comparisons show the best by area; among so many the best looks better than it is.",
    ),
    "confirm": (
        "A candidate of the search, on pages it never saw",
        "One candidate, named in params.yaml, is asked about the held-out pages. Which is best by the searches is a "
        "mean over tasks and models, declared test models left out.",
    ),
}

READING = (
    "Charts over all models leave declared test models out; each model's own charts, comparisons and numbers are "
    "folded below them."
)


def parts(material: Material) -> list[str]:
    """Per study: what it asks, what the intervals say over all models, then every model folded.

    Nothing where no study was made.
    """
    if not material.studies:
        return []
    links = ((f"study-{name}", TEXT[name][0]) for name in material.studies)
    found = [contents("Studies", links), paragraph(READING)]
    for name, models in material.studies.items():
        title, text = TEXT[name]
        found += [heading(title, anchor=f"study-{name}"), paragraph(text), *_overview(name, material)]
        if name == "confirm":
            found.append(bullets(_confirmed(material)))
        for key, rows in models.items():
            found += _model(name, key, material.params.models[key].note, rows)
    published = _published(material)
    return [*found, heading("Beside the published numbers"), *published] if published else found


def _confirmed(material: Material) -> list[str]:
    """What the searches and the held-out pages say about the candidate."""
    notes = {key: one.note for key, one in material.params.models.items()}
    candidate = material.params.studies.made()["confirm"].candidate
    areas = mean_areas(material.studies.get("search", {}), notes)
    return best_of(areas, candidate) + gains(candidate, material.studies["confirm"], notes)


def _overview(name: str, material: Material) -> list[str]:
    """Every comparison over the models that are evidence: a chart of the differences, and counts of the verdicts."""
    models = {key: rows for key, rows in material.studies[name].items() if not material.params.models[key].note}
    groups = compared([row for rows in models.values() for row in shown(name, rows)])
    if not groups:
        return []
    listed, lines = [], {}
    several = len({condition for condition, _, _ in groups}) > 1
    for (condition, setting, other), rows in groups.items():
        differences = [float(row["diff"]) for row in rows]
        names = [condition] * (several and bool(condition)) + [f"{setting} against {other}"]
        least_most = f"{min(differences):+.3f} to {max(differences):+.3f}"
        listed.append([": ".join(names), *map(str, tally(rows).values()), least_most])
        lines["<br>".join(names)] = rows
    over = "one model" if len(models) == 1 else f"{len(models)} models"
    title, header = TEXT[name][0], ["comparison", *VERDICTS, "differences"]
    counts = table(header, listed, f"{title}: how often the interval says what, {over}")
    return [
        chart(of_models(lines), f"{title}: differences with intervals. A table counts them.", f"{over}: {EVIDENCE}."),
        counts if len(listed) <= SHORT else details("How often the interval says what", counts),
    ]


def _model(name: str, key: str, note: str, rows: list[Row]) -> list[str]:
    title, best = TEXT[name][0], shown(name, rows)
    said = claims(best)
    drawn = [
        chart(one, f"{title}, {key}, {where}. {' '.join(said[:4])}", f"{where}: {_behind(panel.rows)}")
        for panel, (where, one) in zip(panels(best), charts(best).items(), strict=True)
    ]
    first, rest = said[:6], said[6:]
    parts = [
        *([paragraph(f"* {note}", "note")] if note else []),
        pair(*drawn[:SHOWN]),
        *([details(f"{len(drawn) - SHOWN} more charts", pair(*drawn[SHOWN:]))] if drawn[SHOWN:] else []),
        bullets(first) if first else "",
        *([details(f"{len(rest)} more comparisons", bullets(rest))] if rest else []),
        details("All numbers", _listed(key, rows)),
    ]
    return [details(f"{key} *: charts and numbers" if note else f"{key}: charts and numbers", *parts)]


def _behind(rows: Sequence[Row]) -> str:
    """How many samples a panel's values are of, and what its intervals are."""
    counts = sorted({int(row["n"]) for row in rows if row["n"]})
    if not counts:
        return "no interval."
    least, most = counts[0], counts[-1]
    samples = f"{least if least == most else f'{least} to {most}'} sample{'s' if most > 1 else ''}"
    if most < 2:
        return f"{samples}, no interval and no verdict."
    draws = " (and, for random methods, over draws)" if any(row["seeds"] not in ("", "1") for row in rows) else ""
    return f"{samples}, 95 % bootstrap intervals over pages{draws}."


def _listed(key: str, rows: Sequence[Row]) -> str:
    header = ["setting", "difference", "95 % interval", "verdict", "value", "95 % interval", "n", "spread"]
    header += ["slots kept", "bytes", "samples needed"]
    cells = []
    for row in rows:
        own = [_named(row), f"{float(row['diff']):+.3f}" if row["diff"] else ""]
        own += [_interval(row, "diff_ci"), row["verdict"], f"{float(row['value']):.3f}", _interval(row, "ci"), row["n"]]
        own += [row["spread"] if row["seeds"] not in ("", "1") else ""]
        cells.append([*own, row["kept_slots"], row["bytes"], row["needed"]])
    caption = f"{key}: differences are paired; samples needed are for the precision that params.yaml states"
    return table(header, cells, caption)


def _named(row: Row) -> str:
    """All that tells a row from others: its setting, task, condition, level, budget, and what it is held against."""
    at = (f"{name} {row[column]}" for name, column in (("level", "level"), ("B =", "budget")) if row[column])
    name = ", ".join(filter(None, (row["setting"], row["task"], row["condition"], *at)))
    return f"{name}, against {row['against']}" if row["against"] else name


def _interval(row: Row, prefix: str) -> str:
    low, high = row[f"{prefix}_low"], row[f"{prefix}_high"]
    return f"[{float(low):.3f}, {float(high):.3f}]" if low else ""


def _published(material: Material) -> list[str]:
    header = ["task and method", "ours minus published", "ours", "published", "published metric"]
    made = []
    for key, rows in material.studies.get("curve", {}).items():
        cells = [
            [
                f"{one.task}, {one.method}, B = {one.budget}",
                f"{one.diff:+.3f} [{one.low:+.3f}, {one.high:+.3f}]",
                *(f"{one.ours:.3f}", f"{one.published:.3f}", one.metric),
            ]
            for one in beside(material.params.models[key].checkpoint, [row for row in rows if row["ci_low"]])
        ]
        if cells:
            made.append(table(header, cells, f"{key}: ours and {SOURCE}; the interval is that of our samples alone"))
    return made
