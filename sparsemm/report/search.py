"""What the search for an allocation found, and whether the held-out pages bear it out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sparsemm.errors import DataError
from sparsemm.report.results import Row
from sparsemm.studies.candidates import CANDIDATES
from sparsemm.studies.curve import AREA
from sparsemm.studies.names import OVERALL, PAPER

BEST = 6


def leading(rows: Sequence[Row]) -> list[Row]:
    """Rows of the paper's allocation and of the `BEST` settings with the largest area, areas first."""
    areas = {row["setting"]: float(row["value"]) for row in rows if row["task"] == OVERALL and row["setting"] != PAPER}
    order = [PAPER, *sorted(areas, key=lambda name: -areas[name])[:BEST]]
    mine = [row for name in order for row in rows if row["setting"] == name]
    return sorted(mine, key=lambda row: (row["task"] != OVERALL, row["condition"] != AREA))


def mean_areas(searches: Mapping[str, Sequence[Row]], notes: Mapping[str, str]) -> dict[str, float]:
    """Candidates that keep as many slots as the paper's -> area of their search, mean over tasks and models.

    Args:
        searches: per model, the rows of `search`.
        notes: per model, its declaration if it is a test model; such a one decides nothing.

    Raises:
        DataError: if a search is not over today's candidates.
    """
    tables = []
    for key, rows in searches.items():
        if notes[key]:
            continue
        areas = {r["setting"]: float(r["value"]) for r in rows if (r["task"], r["condition"]) == (OVERALL, AREA)}
        if set(areas) != set(CANDIDATES):
            where = f"artifacts/studies/search/{key}.csv"
            raise DataError("not a search over today's candidates", where=where, hint="run its stage again")
        tables.append(areas)
    exact = [name for name, one in CANDIDATES.items() if one.mode == "exact"]
    return {name: sum(areas[name] for areas in tables) / len(tables) for name in exact if tables}


def best_of(areas: Mapping[str, float], candidate: str) -> list[str]:
    """Which candidate is the best by the searches, and whether the held-out pages were asked about it."""
    if not areas:
        return []
    best = max(areas, key=lambda name: areas[name])  # of equal ones the first
    beside = "" if best == PAPER else f"; {PAPER} {areas[PAPER]:.3f}"
    said = [f"Best by the searches, mean over tasks and models: {best} (area {areas[best]:.3f}{beside})."]
    if candidate != best and candidate in areas:
        said.append(
            f"The held-out pages were asked about {candidate} (area {areas[candidate]:.3f}) instead: "
            "`studies.confirmed.confirm.candidate` in params.yaml says which."
        )
    return said


def gains(candidate: str, confirmed: Mapping[str, Sequence[Row]], notes: Mapping[str, str]) -> list[str]:
    """What a candidate gained on the held-out pages of every model and each task, and whether that holds.

    A gain holds where the interval of the paired difference of the overall area is above zero. Tasks for which the
    candidate is shown worse are said beside it: a mean hides them.

    Args:
        candidate: which one `confirm` asked about.
        confirmed: per model, the rows of `confirm`.
        notes: per model, its declaration if it is a test model; such a one decides nothing.

    Raises:
        DataError: if the rows of a model are of another candidate.
    """
    for key, rows in confirmed.items():
        if candidate not in {row["setting"] for row in rows}:
            where = f"artifacts/studies/confirm/{key}.csv"
            raise DataError(f"not of {candidate!r}", where=where, hint="run its stage again")
    if candidate == PAPER:
        return ["The candidate is the paper's own allocation: there is nothing to gain."]
    said: list[str] = []
    held, worse = {}, []
    for key, rows in confirmed.items():
        mine = [row for row in rows if (row["condition"], row["setting"]) == (AREA, candidate) and row["verdict"]]
        for row in mine:
            if row["task"] != OVERALL:
                continue
            if row["against"] == PAPER and not notes[key]:
                held[key] = row["verdict"] == "better"
            each = [one for one in mine if one["task"] != OVERALL and one["against"] == row["against"]]
            by_task = "; ".join(f"{one['task']}: {_said(one)}" for one in each)
            said.append(
                f"{key}{' *' if notes[key] else ''}, {row['n']} held-out samples: {candidate} against "
                f"{row['against']}, mean over tasks: {_said(row)}{'; ' + by_task if by_task else ''}."
            )
            if row["against"] == PAPER and not notes[key]:
                worse += [f"{key}, {one['task']}" for one in each if one["verdict"] == "worse"]
    if worse:
        said.append(f"For single tasks {candidate} is shown worse than {PAPER}: {'; '.join(worse)}.")
    missing = sum(not note for note in notes.values()) - len(held)
    if held and all(held.values()) and not missing:
        return [
            *said,
            f"The gain over {PAPER}, as a mean over tasks, holds on all {len(held)} models: {candidate} may become the "
            "default.",
        ]
    return [
        *said,
        f"The gain over {PAPER}, as a mean over tasks, holds on {sum(held.values())} of {len(held) + missing} models: "
        "the paper's allocation stays the default.",
    ]


def _said(row: Row) -> str:
    low, high = float(row["diff_ci_low"]), float(row["diff_ci_high"])
    return f"{row['verdict']} ({float(row['diff']):+.3f} [{low:+.3f}, {high:+.3f}])"
