"""What a derived study works with: the results of the evaluate and profile stages."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsemm.errors import DataError
from sparsemm.evaluate.rows import Arm, Outcome, tabulate
from sparsemm.evaluate.rows import Row as Cells
from sparsemm.evaluate.tasks import METRICS
from sparsemm.params import Params
from sparsemm.statistics import Pages, Values, area, page_numbers
from sparsemm.tables import HINT, Row, read_rows

Way = tuple[str, str, int | None]  # task, method, budget


class Kept(Row):
    """The columns of artifacts/evaluate/<key>.csv that say what a method kept."""

    task: str
    method: str
    budget: int | None
    kept_slots: float
    bytes: float


class Timed(Row):
    """The columns of artifacts/profile/<key>.csv that a study shows."""

    method: str
    budget: int | None
    prompt_length: int
    decode_ms_per_token: float
    decode_ratio_to_full: float
    kept_bytes: float


@dataclass(frozen=True)
class Samples:
    """The values of every (task, method, budget), over the same pages in the same order.

    Attributes:
        values: (draws, n) float64; several draws if a random method was run with several seeds.
        answers: the n reference answers of each task.
        pages: (n,) number of each sample's page, by task.
    """

    values: dict[Way, Values]
    answers: dict[str, list[str]]
    pages: dict[str, Pages]

    def tasks(self) -> list[str]:
        """Returns the tasks in the order they were run."""
        return list(self.answers)

    def methods(self, task: str) -> list[str]:
        """Returns the methods in the order they were run."""
        return list(dict.fromkeys(method for t, method, _ in self.values if t == task))

    def areas(self, task: str, method: str) -> Values:
        """Returns (draws, n) areas under every sample's accuracy over log2 B; of the full cache, its accuracy.

        Raises:
            DataError: if the method was run at no budget.
        """
        budgets = sorted(b for t, m, b in self.values if (t, m) == (task, method) and b is not None)
        if not budgets:
            return self.values[task, method, None]
        curves = np.stack([self.values[task, method, budget] for budget in budgets], axis=1)  # (draws, budgets, n)
        return np.stack([area(curve, budgets) for curve in curves])

    def outcome(
        self, way: Way, values: Values | None = None, inside: NDArray[np.int64] | slice = slice(None), **known: Any
    ) -> Outcome:
        """Returns the outcome of an arm, from its own values or from (draws, n) others, of all samples or some."""
        draws = (self.values[way] if values is None else values)[:, inside]
        means = draws.mean(axis=1)
        spread, pages = float(means.max() - means.min()), self.pages[way[0]][inside]
        return Outcome(draws.mean(axis=0), METRICS[way[0]], seeds=len(draws), spread=spread, pages=pages, **known)


def read_samples(root: Path, key: str) -> Samples:
    """Reads artifacts/evaluate/<key>.samples.parquet.

    Raises:
        DataError: if the file is missing or malformed, or its samples are not paired.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = root / "artifacts" / "evaluate" / f"{key}.samples.parquet"
    draws: dict[Way, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    answers: dict[str, dict[str, str]] = defaultdict(dict)
    pages: dict[str, dict[str, str]] = defaultdict(dict)
    try:
        for row in pq.ParquetFile(path).read().to_pylist():  # pq.read_table would import pandas
            draws[row["task"], row["method"], row["budget"]][row["id"]].append(float(row["value"]))
            answers[row["task"]][row["id"]] = row["answer"]
            pages[row["task"]][row["id"]] = row["page"]
    except (OSError, pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
        raise DataError(f"cannot be read: {error!r}", where=str(path), hint=HINT) from error
    values = {}
    for way, by_sample in draws.items():
        if by_sample.keys() != answers[way[0]].keys() or len({len(one) for one in by_sample.values()}) != 1:
            raise DataError(f"{way} was not asked about every page alike", where=str(path), hint=HINT)
        values[way] = np.array([by_sample[sample] for sample in answers[way[0]]], dtype=np.float64).T
    if not values:
        raise DataError("no samples", where=str(path), hint=HINT)
    numbers = {task: page_numbers([names[sample] for sample in answers[task]]) for task, names in pages.items()}
    return Samples(values, {task: list(texts.values()) for task, texts in answers.items()}, numbers)


@dataclass(frozen=True)
class Evaluated:
    """The results of a model that a derived study works with.

    Attributes:
        params, study, key, root: params.yaml, the names of the study and the model, and the folder with artifacts/.
        options: the study's entry in params.yaml.
    """

    params: Params
    study: str
    key: str
    root: Path
    options: Any

    @cached_property
    def samples(self) -> Samples:
        """Returns the value of every answer.

        Raises:
            DataError: if they are missing or malformed.
        """
        return read_samples(self.root, self.key)

    @cached_property
    def kept(self) -> dict[Way, tuple[float, float]]:
        """Returns the mean slots per KV head and the bytes of every (task, method, budget).

        Raises:
            DataError: if the table is missing or malformed.
        """
        rows = read_rows(self.root / "artifacts" / "evaluate" / f"{self.key}.csv", Kept)
        return {(row.task, row.method, row.budget): (row.kept_slots, row.bytes) for row in rows}

    @cached_property
    def timings(self) -> list[Timed]:
        """Returns what the profile stage measured.

        Raises:
            DataError: if the table is missing or malformed.
        """
        return read_rows(self.root / "artifacts" / "profile" / f"{self.key}.csv", Timed)

    def rows(self, outcomes: Mapping[Arm, Outcome], against: Callable[[Arm], Iterable[Arm]]) -> list[Cells]:
        """Returns the rows of `tabulate` with this study's settings."""
        return study_rows(self.params, self.study, self.key, self.options, outcomes, against)


def study_rows(
    params: Params,
    study: str,
    key: str,
    options: Any,
    outcomes: Mapping[Arm, Outcome],
    against: Callable[[Arm], Iterable[Arm]],
    shift: int = 0,
) -> list[Cells]:
    """Returns the rows of `tabulate` for a study of a model, with the study's own precision.

    `shift` is added to the seed of the bootstrap.
    """
    return tabulate(
        {"model": key, "study": study},
        outcomes,
        against,
        resamples=params.evaluate.bootstrap,
        seed=params.evaluate.seed + shift,
        precision=options.precision,
    )
