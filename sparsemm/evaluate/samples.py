"""What the evaluate and profile stages wrote, for studies that measure nothing again."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsemm.errors import DataError
from sparsemm.evaluate.rows import Arm, Outcome, Row, tabulate
from sparsemm.evaluate.statistics import Pages, Values, area, page_numbers
from sparsemm.evaluate.tasks import METRICS
from sparsemm.params import Params

HINT = "run its stage again"
Way = tuple[str, str, int | None]  # task, method, budget


@dataclass(frozen=True)
class Samples:
    """Values of every (task, method, budget), over the same pages in the same order.

    Attributes:
        values: (draws, n) float64: several draws where a random method was run with several seeds.
        answers: of each task, the n reference answers.
        pages: of each task, (n,) number of each sample's page.
    """

    values: dict[Way, Values]
    answers: dict[str, list[str]]
    pages: dict[str, Pages]

    def tasks(self) -> list[str]:
        """In the order they were run."""
        return list(self.answers)

    def methods(self, task: str) -> list[str]:
        """In the order they were run."""
        return list(dict.fromkeys(method for t, method, _ in self.values if t == task))

    def budgets(self, task: str, method: str) -> list[int]:
        """Rising; empty for the full cache."""
        return sorted(b for t, m, b in self.values if (t, m) == (task, method) and b is not None)

    def areas(self, task: str, method: str) -> Values:
        """(draws, n) area under every sample's accuracy over log2 B; of the full cache, its accuracy.

        Raises:
            DataError: if the method was run at no budget.
        """
        budgets = self.budgets(task, method)
        if not budgets:
            return self.values[task, method, None]
        curves = np.stack([self.values[task, method, budget] for budget in budgets], axis=1)  # (draws, budgets, n)
        return np.stack([area(curve, budgets) for curve in curves])

    def outcome(
        self, way: Way, values: Values | None = None, inside: NDArray[np.int64] | slice = slice(None), **known: Any
    ) -> Outcome:
        """An arm's outcome, of its own values or of (draws, n) others made from them, of all samples or some."""
        draws = (self.values[way] if values is None else values)[:, inside]
        means = draws.mean(axis=1)
        spread, pages = float(means.max() - means.min()), self.pages[way[0]][inside]
        return Outcome(draws.mean(axis=0), METRICS[way[0]], seeds=len(draws), spread=spread, pages=pages, **known)


def read_samples(root: Path, key: str) -> Samples:
    """Read artifacts/evaluate/<key>.samples.parquet.

    Raises:
        DataError: if it is missing, malformed, or not paired.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = root / "artifacts" / "evaluate" / f"{key}.samples.parquet"
    try:
        rows = pq.ParquetFile(path).read().to_pylist()  # pq.read_table would import pandas
        found: dict[Way, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        answers: dict[str, dict[str, str]] = defaultdict(dict)
        names: dict[str, dict[str, str]] = defaultdict(dict)
        for row in rows:
            found[row["task"], row["method"], row["budget"]][row["id"]].append(float(row["value"]))
            answers[row["task"]][row["id"]] = row["answer"]
            names[row["task"]][row["id"]] = row["page"]
    except (OSError, pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
        raise DataError(f"cannot be read: {error!r}", where=str(path), hint=HINT) from error
    values = {}
    for way, pages in found.items():
        if pages.keys() != answers[way[0]].keys() or len({len(draws) for draws in pages.values()}) != 1:
            raise DataError(f"{way} was not asked about every page alike", where=str(path), hint=HINT)
        values[way] = np.array([pages[page] for page in answers[way[0]]], dtype=np.float64).T
    if not values:
        raise DataError("no samples", where=str(path), hint=HINT)
    numbers = {task: page_numbers([mine[one] for one in answers[task]]) for task, mine in names.items()}
    return Samples(values, {task: list(mine.values()) for task, mine in answers.items()}, numbers)


def read_table(root: Path, stage: str, key: str, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """Rows of artifacts/<stage>/<key>.csv.

    Raises:
        DataError: if it is missing or lacks a column.
    """
    path = root / "artifacts" / stage / f"{key}.csv"
    try:
        with open(path, newline="", encoding="utf-8") as handle:
            rows = list(csv.DictReader(handle))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot be read: {error}", where=str(path), hint=HINT) from error
    if not rows or any(row.get(column) is None for row in rows for column in columns):
        raise DataError(f"no rows with {', '.join(columns)}", where=str(path), hint=HINT)
    return rows


@dataclass(frozen=True)
class Evaluated:
    """What a derived study of a model works with: the results of the evaluate and profile stages.

    Attributes:
        params, study, key, root: what is studied, and the folder with artifacts/.
        given: its entry in params.yaml.
    """

    params: Params
    study: str
    key: str
    root: Path
    given: Any

    @cached_property
    def samples(self) -> Samples:
        """Every answer's value.

        Raises:
            DataError: if they are missing or malformed.
        """
        return read_samples(self.root, self.key)

    @cached_property
    def kept(self) -> dict[Way, tuple[float, float]]:
        """Mean slots per KV head and bytes of every (task, method, budget).

        Raises:
            DataError: if the table is missing or malformed.
        """
        return kept(self.root, self.key)

    def rows(self, outcomes: Mapping[Arm, Outcome], against: Callable[[Arm], Iterable[Arm]]) -> list[Row]:
        """`tabulate`, with this study's settings."""
        asked = self.params.evaluate
        options = {"resamples": asked.bootstrap, "seed": asked.seed, "precision": self.given.precision}
        return tabulate({"model": self.key, "study": self.study}, outcomes, against, **options)


def kept(root: Path, key: str) -> dict[Way, tuple[float, float]]:
    """Mean slots per KV head and bytes of every (task, method, budget) of artifacts/evaluate/<key>.csv.

    Raises:
        DataError: if it is missing or malformed.
    """
    rows = read_table(root, "evaluate", key, ("task", "method", "budget", "kept_slots", "bytes"))
    try:
        return {
            (r["task"], r["method"], int(r["budget"]) if r["budget"] else None): (
                float(r["kept_slots"]),
                float(r["bytes"]),
            )
            for r in rows
        }
    except ValueError as error:
        raise DataError(f"not a number: {error}", where=f"artifacts/evaluate/{key}.csv", hint=HINT) from error
