"""Arms of a study and the rows they become: means, paired differences, verdicts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sparsemm import tables
from sparsemm.errors import DataError
from sparsemm.evaluate.metrics import Values
from sparsemm.evaluate.statistics import Pages, difference, estimate, verdict
from sparsemm.policies import METHODS
from sparsemm.studies.declaration import StudyRow

COLUMNS = (
    "model study task condition setting level budget kept_slots bytes metric value n pages seeds spread ci_low ci_high "
    "against diff diff_ci_low diff_ci_high verdict needed"
).split()
Row = dict[str, Any]


class Arm(NamedTuple):
    """One way of answering the questions of a task.

    Attributes:
        condition: what holds for all settings that are compared, empty where there is nothing to say.
        setting: what is varied: a method, a kind of head.
        level: how much of it, where that is a number.
        budget: mean slots per KV head, or None for the full cache or an area over budgets.
    """

    task: str
    condition: str
    setting: str
    level: float | None = None
    budget: int | None = None


@dataclass(frozen=True)
class Outcome:
    """What an arm gave.

    Attributes:
        values: (n,) float64 per sample, mean over seeds where there are several.
        metric: their name.
        kept: mean slots per KV head that were kept after prefill, or None.
        bytes: mean bytes of keys and values then, or None.
        seeds: random draws behind each value; 1 if nothing is random.
        spread: largest minus smallest mean of a draw.
        pages: (n,) number of each sample's page, or None if every sample has its own.
    """

    values: Values
    metric: str
    kept: float | None = None
    bytes: float | None = None
    seeds: int = 1
    spread: float = 0.0
    pages: Pages | None = None


def over_seeds(draws: Iterable[Outcome]) -> Outcome:
    """The mean over random draws, sample by sample.

    A draw is new for every page (`sparsemm.policies.per_row`), so that resampling pages resamples draws too.

    Raises:
        DataError: if there is no draw.
    """
    draws = list(draws)
    if not draws:
        raise DataError("no draw", where="mean over seeds")
    values = np.stack([one.values for one in draws])
    means = values.mean(axis=1)
    first = draws[0]
    return Outcome(
        values.mean(axis=0),
        first.metric,
        first.kept,
        first.bytes,
        len(draws),
        float(means.max() - means.min()),
        first.pages,
    )


def tabulate(
    head: Mapping[str, str],
    outcomes: Mapping[Arm, Outcome],
    against: Callable[[Arm], Iterable[Arm]],
    *,
    resamples: int,
    seed: int,
    precision: float,
) -> list[Row]:
    """One row per arm and arm it is compared with; a single one without a difference where it is compared with none.

    `diff` is the arm minus the other, paired over samples, and `verdict` is about the arm. `needed` is the number of
    pages at which the interval of this difference (of the mean, where there is none) is +- `precision` wide.

    Args:
        head: values of the columns model and study.
        outcomes: per arm.
        against: the arms an arm is compared with; those that were not measured are left out.
    """
    rows = []
    for arm, outcome in outcomes.items():
        mean = estimate(outcome.values, resamples, seed, outcome.pages)
        row: Row = dict.fromkeys(COLUMNS, "") | dict(head)
        row |= {name: "" if value is None else value for name, value in arm._asdict().items()}
        row |= {
            "kept_slots": "" if outcome.kept is None else round(outcome.kept, 4),
            "bytes": "" if outcome.bytes is None else round(outcome.bytes),
            "metric": outcome.metric,
            "value": round(mean.value, 6),
            "n": len(outcome.values),
            "pages": mean.pages,
            "seeds": outcome.seeds,
            "spread": round(outcome.spread, 6),
            "ci_low": round(mean.low, 6),
            "ci_high": round(mean.high, 6),
            "needed": mean.needed(precision),
        }
        others = [other for other in against(arm) if other != arm and other in outcomes]
        rows += [
            row | {"against": name(other, arm)} | _compared(outcome, outcomes[other], resamples, seed, precision)
            for other in others
        ] or [row]
    return rows


def _compared(mine: Outcome, theirs: Outcome, resamples: int, seed: int, precision: float) -> Row:
    found = difference(mine.values, theirs.values, resamples, seed, mine.pages)
    low, high = round(found.low, 6), round(found.high, 6)
    return {
        "diff": round(found.value, 6),
        "diff_ci_low": low,
        "diff_ci_high": high,
        "verdict": verdict(low, high),  # of what is written: a sum of differences that cancel is not quite zero
        "needed": found.needed(precision),
    }


def by_method(arm: Arm) -> list[Arm]:
    """What an arm whose setting is a method is compared with: all with the full cache, sparsemm with every method."""
    others = [arm._replace(setting=m) for m in METHODS if m not in ("full", "sparsemm")]
    full = arm._replace(setting="full", budget=None)
    return {"full": [], "sparsemm": [full, *others]}.get(arm.setting, [full])


def name(other: Arm, mine: Arm) -> str:
    """An arm in the column `against` of another one: its setting, and what else it does not share."""
    parts = [other.condition] if other.condition not in (mine.condition, "") else []
    parts += [f"{other.level:g}"] if other.level not in (mine.level, None) else []
    parts += [f"B={other.budget}"] if other.budget not in (mine.budget, None) else []
    return f"{other.setting} ({', '.join(parts)})" if any(parts) else other.setting


def read_rows(path: Path, study: str, key: str) -> list[StudyRow]:
    """Rows that the study stage wrote.

    Raises:
        DataError: if the file is not what it writes.
    """
    rows = tables.read_rows(path, StudyRow, {"study": study, "model": key})
    if not rows:
        raise DataError("no row", where=str(path), hint=tables.HINT)
    return rows
