"""The studies' sections: what was asked, what the intervals say, and all numbers."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

from sparsemm.params import Params
from sparsemm.published import SOURCE, beside
from sparsemm.report.page import bullets, details, heading, paragraph, table
from sparsemm.report.results import Row
from sparsemm.report.search import asked, gains, leading
from sparsemm.report.study_figures import drawn
from sparsemm.studies.names import STUDIES
from sparsemm.studies.rows import read_rows

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
        "Random heads are drawn several times and averaged page by page; `spread` is the range over draws.",
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
        "heads in the middle of the ranking and of the last ones. Scores are from other pages than these.",
    ),
    "search": (
        "A better allocation than the paper's",
        "Other ways from the same scores to slots, at equal slots, on the pages of the search alone. `sparsemm` is the "
        "paper's allocation with exact totals. `overflow lost` keeps fewer slots and cannot be chosen. The figure and "
        "the comparisons show the best by area; among so many the best looks better than it is.",
    ),
    "confirm": (
        "The best of the search, on pages it never saw",
        "One candidate is chosen by its mean area over tasks and models, declared test models left out, and asked "
        "about the held-out pages.",
    ),
}


def sections(params: Params, root: Path, images: dict[str, bytes]) -> list[tuple[str, str, list[str]]]:
    """(anchor, title, parts) of every study that has been made; figures are added to `images`.

    Raises:
        DataError: if a file is not what its study writes.
    """
    found = []
    for name in STUDIES:
        made = {}
        for key in params.models:
            path = root / "artifacts" / "studies" / name / f"{key}.csv"
            if path.is_file():
                made[key] = read_rows(path, name, key)
        if made:
            title, text = TEXT[name]
            notes = {key: entry.note for key, entry in params.models.items()}
            said = [bullets(gains(made, notes))] if name == "confirm" else []
            parts = [part for key, rows in made.items() for part in _model(name, key, notes[key], rows, images)]
            found.append((f"study-{name}", title, [paragraph(text), *said, *parts]))
    published = _published(params, root)
    return [*found, ("published", "Beside the published numbers", published)] if published else found


def _model(name: str, key: str, note: str, rows: list[Row], images: dict[str, bytes]) -> list[str]:
    shown_rows = leading(rows) if name == "search" else asked(rows)
    image = images[f"study-{name}-{key}"] = drawn(f"{key} *" if note else key, shown_rows)
    said = claims(shown_rows)
    counts = sorted({int(row["n"]) for row in rows if row["n"]})
    pages = f"{counts[0]} to {counts[-1]} samples" if len(counts) > 1 else f"{counts[0]} samples" if counts else ""
    caption = f"{key}: means with 95 % bootstrap intervals, {pages}."
    data = base64.b64encode(image).decode("ascii")
    alt = escape(f"{TEXT[name][0]}, {key}. {' '.join(said[:4])}", quote=True)
    shown = f'<figure><img src="data:image/png;base64,{data}" alt="{alt}"><figcaption>{caption}</figcaption></figure>'
    declared = [paragraph(f"* {note}", "note")] if note else []
    first, rest = said[:6], said[6:]
    more = [details(f"{len(rest)} more comparisons", bullets(rest))] if rest else []
    return [heading(key), *declared, shown, bullets(first), *more, details("All numbers", _listed(key, rows))]


def claims(rows: Sequence[Row]) -> list[str]:
    """What the paired intervals say, one sentence for all levels and budgets of a comparison.

    Every word comes from the rows' verdicts, which come from the intervals.
    """
    grouped: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if row["against"]:
            grouped.setdefault((row["task"], row["condition"], row["setting"], row["against"]), []).append(row)
    found = []
    for (task, condition, setting, other), mine in grouped.items():
        words: dict[str, list[str]] = {}
        for row in mine:
            low, high = float(row["diff_ci_low"]), float(row["diff_ci_high"])
            at = " ".join(f"{n} {row[c]}" for n, c in (("level", "level"), ("B =", "budget")) if row[c])
            words.setdefault(row["verdict"], []).append(
                f"{at + ' ' if at else ''}({float(row['diff']):+.3f} [{low:+.3f}, {high:+.3f}])"
            )
        said = "; ".join(
            f"{word} {'at ' if mine[0]['level'] or mine[0]['budget'] else ''}{', '.join(where)}"
            for word, where in words.items()
        )
        found.append(f"{task}{', ' + condition if condition else ''}: {setting} against {other}: {said}.")
    return found


def _listed(key: str, rows: Sequence[Row]) -> str:
    header = ["setting", "task", "condition", "level", "B", "slots kept", "bytes", "value", "95 % interval", "n"]
    header += ["against", "difference", "95 % interval", "verdict", "samples needed"]
    cells = []
    for row in rows:
        own = [row[c] for c in ("setting", "task", "condition", "level", "budget", "kept_slots", "bytes")]
        own += [f"{float(row['value']):.3f}", _interval(row, "ci"), row["n"], row["against"]]
        own += [f"{float(row['diff']):+.3f}" if row["diff"] else "", _interval(row, "diff_ci"), row["verdict"]]
        cells.append([*own, row["needed"]])
    caption = f"{key}: differences are paired; samples needed are for the precision that params.yaml states"
    return table(header, cells, caption)


def _interval(row: Row, prefix: str) -> str:
    low, high = row[f"{prefix}_low"], row[f"{prefix}_high"]
    return f"[{float(low):.3f}, {float(high):.3f}]" if low else ""


def _published(params: Params, root: Path) -> list[str]:
    parts = []
    for key, entry in params.models.items():
        path = root / "artifacts" / "studies" / "curve" / f"{key}.csv"
        found = beside(entry.checkpoint, read_rows(path, "curve", key)) if path.is_file() else []
        cells = [
            [
                *(one.task, one.method, str(one.budget), one.metric, f"{one.ours:.3f}", f"{one.published:.3f}"),
                f"{one.diff:+.3f} [{one.low:+.3f}, {one.high:+.3f}]",
            ]
            for one in found
        ]
        header = ["task", "method", "B", "published metric", "ours", "published", "ours minus published"]
        if cells:
            parts.append(table(header, cells, f"{key}: ours and {SOURCE}; the interval is that of our samples alone"))
    return parts
