"""Turns measured arms into table rows (means, paired differences, verdicts), and writes tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sparsemm.errors import DataError
from sparsemm.files import write_csv, write_json
from sparsemm.policies import METHODS
from sparsemm.statistics import Estimate, Mean, Pages, Values, difference, estimate

if TYPE_CHECKING:
    from sparsemm.evaluate.tasks import Scored

# Settings and tasks with a special role: the method that others are compared with, the cache that all methods are
# compared with, the mean over all tasks, and the mean accuracy over all budgets.
PAPER, FULL, OVERALL, AREA = "sparsemm", "full", "all tasks", "area over log2 B"
COLUMNS = (
    "model study task condition setting level budget kept_slots bytes metric value n pages seeds spread ci_low ci_high "
    "against diff diff_ci_low diff_ci_high verdict needed"
).split()
Row = dict[str, Any]


class Arm(NamedTuple):
    """One way of answering the questions of a task, which is a point in a table.

    Attributes:
        task: name of the task.
        condition: what all compared settings have in common; may be empty.
        setting: what is varied, such as a method or a kind of head.
        level: amount of the setting, if it is a number.
        budget: mean slots per KV head, or None for the full cache or an area over budgets.
    """

    task: str
    condition: str
    setting: str
    level: float | None = None
    budget: int | None = None


@dataclass(frozen=True)
class Outcome:
    """What was measured for an arm.

    Attributes:
        values: (n,) float64, one per sample, averaged over seeds if there are several.
        metric: name of the values.
        kept: mean slots per KV head after prefill, or None.
        bytes: mean bytes of keys and values after prefill, or None.
        seeds: number of random draws behind each value; 1 if nothing is random.
        spread: largest minus smallest mean of a draw.
        pages: (n,) number of each sample's page, or None if every sample has its own page.
        samples: the scored answers of every draw, if there are any.
    """

    values: Values
    metric: str
    kept: float | None = None
    bytes: float | None = None
    seeds: int = 1
    spread: float = 0.0
    pages: Pages | None = None
    samples: Sequence[Sequence[Scored]] = ()


def over_seeds(draws: Iterable[Outcome]) -> Outcome:
    """Averages random draws, sample by sample.

    Every page has draws of its own (`sparsemm.policies.per_row`), so that resampling pages resamples draws too.

    Raises:
        DataError: if there is no draw.
    """
    draws = list(draws)
    if not draws:
        raise DataError("no draw", where="mean over seeds")
    values = np.stack([one.values for one in draws])
    means, first = values.mean(axis=1), draws[0]
    return Outcome(
        values.mean(axis=0),
        first.metric,
        first.kept,
        first.bytes,
        len(draws),
        float(means.max() - means.min()),
        first.pages,
        [samples for one in draws for samples in one.samples],
    )


def measured(outcome: Outcome, mean: Mean) -> Row:
    """Returns the cells that every table has for an arm: what was kept, and the mean with its interval."""
    return {
        "kept_slots": "" if outcome.kept is None else round(outcome.kept, 4),
        "bytes": "" if outcome.bytes is None else round(outcome.bytes),
        "metric": outcome.metric,
        "n": len(outcome.values),
        "pages": mean.pages,
        **rounded(mean, "value", "ci"),
    }


def rounded(one: Mean, value: str, interval: str) -> Row:
    """Returns the rounded cells of a mean: `value`, `interval`_low and `interval`_high."""
    ends = {f"{interval}_low": one.low, f"{interval}_high": one.high}
    return {name: round(number, 6) for name, number in ({value: one.value} | ends).items()}


def tabulate(
    head: Mapping[str, str],
    outcomes: Mapping[Arm, Outcome],
    against: Callable[[Arm], Iterable[Arm]],
    *,
    resamples: int,
    seed: int,
    precision: float,
) -> list[Row]:
    """Returns one row per arm and arm that it is compared with; an arm without comparison has one row.

    `diff` is the arm minus the other, paired by sample, and `verdict` is about the arm. `needed` is the number of pages
    at which the interval of this difference (without a comparison, of the mean) is +- `precision` wide.

    Args:
        head: values of the columns model and study.
        outcomes: what was measured, by arm.
        against: returns the arms that an arm is compared with; those that were not measured are left out.
        resamples, seed: number and seed of the bootstrap resamples.
        precision: half-width of the interval for which `needed` is computed.
    """
    rows = []
    for arm, outcome in outcomes.items():
        average = estimate(outcome.values, resamples, seed, outcome.pages)
        row: Row = dict.fromkeys(COLUMNS, "") | dict(head)
        row |= {name: "" if value is None else value for name, value in arm._asdict().items()}
        row |= measured(outcome, average) | {"seeds": outcome.seeds, "spread": round(outcome.spread, 6)}
        others = [other for other in against(arm) if other != arm and other in outcomes]
        for other in others:
            paired = difference(outcome.values, outcomes[other].values, resamples, seed, outcome.pages)
            cells = rounded(paired, "diff", "diff_ci")
            # The verdict is about the rounded numbers, because a sum of differences that cancel is not quite zero.
            cells["verdict"] = Estimate(cells["diff"], cells["diff_ci_low"], cells["diff_ci_high"]).verdict
            rows.append(row | cells | {"against": name(other, arm), "needed": paired.needed(precision)})
        rows += [] if others else [row | {"needed": average.needed(precision)}]
    return rows


def by_method(arm: Arm) -> list[Arm]:
    """Returns what an arm whose setting is a method is compared with.

    All are compared with the full cache, sparsemm with every method of its own selector, and a method with another
    selector with all of these and with uniform budgets under that selector.
    """
    full = arm._replace(setting=FULL, budget=None)
    others = [m for m in METHODS if m not in (FULL, PAPER)]
    selector = arm.setting.partition("+")[2]
    if selector:
        others = [PAPER, *others, f"snapkv+{selector}"]
    elif arm.setting != PAPER:
        others = []
    return [] if arm.setting == FULL else [full, *(arm._replace(setting=m) for m in others if m != arm.setting)]


def name(other: Arm, arm: Arm) -> str:
    """Returns the name of another arm in the column `against`: its setting, and what else differs from this arm."""
    parts = [other.condition] if other.condition not in (arm.condition, "") else []
    parts += [f"{other.level:g}"] if other.level not in (arm.level, None) else []
    parts += [f"B={other.budget}"] if other.budget not in (arm.budget, None) else []
    return f"{other.setting} ({', '.join(parts)})" if any(parts) else other.setting


def refused_rows(head: Mapping[str, str], refused: Mapping[Arm, str]) -> list[Row]:
    """Returns a row with the reason, in the column `refused`, for every arm whose method cannot serve the prompts."""
    cells = ({name: "" if value is None else value for name, value in arm._asdict().items()} for arm in refused)
    return [{**head, **one, "refused": reason} for one, reason in zip(cells, refused.values(), strict=True)]


def write_table(folder: Path, key: str, columns: Sequence[str], rows: Sequence[Row], at: Sequence[str]) -> None:
    """Writes rows to <key>.csv, and their values to <key>.json as metrics, by the columns `at`, level and budget.

    Where something was refused there is a last column `refused` with the reason. Such a row has no value.
    """
    measured = [row for row in rows if "refused" not in row]
    write_csv(folder / f"{key}.csv", [*columns, *(["refused"] if len(measured) < len(rows) else [])], rows)
    metrics: Row = {}
    for row in measured:
        inner = metrics
        for column in at:
            inner = inner.setdefault(row[column], {}) if row[column] else inner
        inner[" ".join(str(row[n]) for n in ("level", "budget") if row.get(n, "") != "") or "all"] = row["value"]
    write_json(folder / f"{key}.json", metrics)
