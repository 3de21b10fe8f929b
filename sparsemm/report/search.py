"""What the search for an allocation found, and whether the held-out pages bear it out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sparsemm.errors import DataError
from sparsemm.report.results import Row
from sparsemm.studies.curve import AREA
from sparsemm.studies.names import CHOICE, OVERALL, PAPER

BEST = 6


def asked(rows: Sequence[Row]) -> list[Row]:
    """Rows of answers, without those of a choice."""
    return [row for row in rows if row["task"] != CHOICE]


def leading(rows: Sequence[Row]) -> list[Row]:
    """Rows of the paper's allocation and of the `BEST` settings with the largest area, areas first."""
    areas = {row["setting"]: float(row["value"]) for row in rows if row["task"] == OVERALL and row["setting"] != PAPER}
    order = [PAPER, *sorted(areas, key=lambda name: -areas[name])[:BEST]]
    mine = [row for name in order for row in rows if row["setting"] == name]
    return sorted(mine, key=lambda row: (row["task"] != OVERALL, row["condition"] != AREA))


def gains(made: Mapping[str, Sequence[Row]], notes: Mapping[str, str]) -> list[str]:
    """What was chosen, what it gained on the held-out pages of every model and each task, and whether that holds.

    A gain holds where the interval of the paired difference of the overall area is above zero. Tasks for which the
    choice is shown worse are said beside it: a mean hides them.

    Args:
        made: per model, the rows of `confirm`.
        notes: per model, its declaration if it is a test model; such a one decides nothing.

    Raises:
        DataError: if the rows of the models come from different choices.
    """
    choices = {
        tuple((r["condition"], r["setting"], r["value"]) for r in rows if r["task"] == CHOICE): 0
        for rows in made.values()
    }
    if len(choices) != 1 or not next(iter(choices)):
        raise DataError(
            "models with different choices, or none", where="artifacts/studies/confirm", hint="run it again"
        )
    (where, chosen, value), *others = next(iter(choices))
    if not others:
        return [f"Chosen, {where}: {chosen} (mean area {float(value):.3f}): no candidate did better than the paper's."]
    said = [f"Chosen, {where}: {chosen} (mean area {float(value):.3f}; {PAPER} {float(others[0][2]):.3f})."]
    held, worse = {}, []
    for key, rows in made.items():
        mine = [row for row in rows if (row["condition"], row["setting"]) == (AREA, chosen) and row["verdict"]]
        for row in mine:
            if row["task"] != OVERALL:
                continue
            if row["against"] == PAPER and not notes[key]:
                held[key] = row["verdict"] == "better"
            each = [one for one in mine if one["task"] != OVERALL and one["against"] == row["against"]]
            by_task = "; ".join(f"{one['task']}: {_said(one)}" for one in each)
            said.append(
                f"{key}{' *' if notes[key] else ''}, {row['n']} held-out samples: {chosen} against {row['against']}, "
                f"mean over tasks: {_said(row)}{'; ' + by_task if by_task else ''}."
            )
            if row["against"] == PAPER and not notes[key]:
                worse += [f"{key}, {one['task']}" for one in each if one["verdict"] == "worse"]
    if worse:
        said.append(f"For single tasks {chosen} is shown worse than {PAPER}: {'; '.join(worse)}.")
    missing = sum(not note for note in notes.values()) - len(held)
    if held and all(held.values()) and not missing:
        return [
            *said,
            f"The gain over {PAPER}, as a mean over tasks, holds on all {len(held)} models: {chosen} may become the "
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
