"""The studies' tables, and sentences that follow from their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from sparsemm.params import Params
from sparsemm.report.findings import VERDICTS
from sparsemm.report.results import Row, without_hollow
from sparsemm.report.search import leading
from sparsemm.studies.curve import AREA
from sparsemm.studies.names import PAPER
from sparsemm.studies.rows import read_rows
from sparsemm.studies.sources import EVEN, ODD

RANKS, HALVES = "rank correlation", f"{EVEN} and {ODD}"
Studies = Mapping[str, Mapping[str, list[Row]]]  # study -> model key -> rows


def read_studies(params: Params, root: Path) -> Studies:
    """Every study of `params` that has been made of one of its models.

    Raises:
        DataError: if a file is not what its study writes.
    """
    found: dict[str, dict[str, list[Row]]] = {}
    for name in params.studies.made():
        for key in params.models:
            path = root / "artifacts" / "studies" / name / f"{key}.csv"
            if path.is_file():
                found.setdefault(name, {})[key] = [without_hollow(row) for row in read_rows(path, name, key)]
    return found


def shown(name: str, rows: Sequence[Row]) -> list[Row]:
    """The rows of a study that are drawn and spoken about: of a search the best, of a curve the areas.

    A curve's values at single budgets are what the accuracy section shows.
    """
    if name == "curve":
        return [row for row in rows if row["condition"] == AREA] or list(rows)
    return leading(rows) if name == "search" else list(rows)


def area_differences(studies: Studies, keys: Sequence[str]) -> dict[str, list[Row]]:
    """sparsemm's area against every other way under "model, task", of those models whose curves were made."""
    found: dict[str, list[Row]] = {}
    for key in keys:
        for row in studies.get("curve", {}).get(key, ()):
            if (row["condition"], row["setting"]) == (AREA, PAPER) and row["verdict"]:
                found.setdefault(f"{key}, {row['task']}", []).append(row)
    return found


def half_ranks(studies: Studies, keys: Sequence[str]) -> list[float]:
    """Rank correlation of the scores of even and of odd pages, of those models whose `sources` were compared."""
    return [
        float(row["value"])
        for key in keys
        for row in studies.get("sources", {}).get(key, ())
        if (row["condition"], row["setting"]) == (RANKS, HALVES)
    ]


def compared(rows: Sequence[Row]) -> dict[tuple[str, str, str], list[Row]]:
    """Rows with a verdict under (condition, setting, against); where sparsemm is among the settings, its own."""
    own = any(row["setting"] == PAPER and row["verdict"] for row in rows)
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if row["verdict"] and (not own or row["setting"] == PAPER):
            found.setdefault((row["condition"], row["setting"], row["against"]), []).append(row)
    return found


def tally(rows: Sequence[Row]) -> dict[str, int]:
    """How often each of `VERDICTS` was given."""
    return {word: sum(row["verdict"] == word for row in rows) for word in VERDICTS}


def claims(rows: Sequence[Row]) -> list[str]:
    """What the paired intervals say, one sentence for all levels and budgets of a comparison.

    Every word comes from the rows' verdicts, which come from the intervals.
    """
    grouped: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if row["verdict"]:
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
