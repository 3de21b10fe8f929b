"""Studies: each asks one question about a model and has its own table and its own part of the report.

Every file of this folder declares a study as `STUDY`: its options in params.yaml, its words, and how it runs. Nothing
else lists the studies. Code that runs a model is imported inside functions, so that params and the report, which read
all studies, stay fast. `common` holds the code that several studies share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, model_validator

from sparsemm.errors import DataError
from sparsemm.evaluate.rows import FULL, PAPER
from sparsemm.evaluate.rows import Row as Cells
from sparsemm.statistics import VERDICTS, Estimate
from sparsemm.tables import HINT, Row, check_interval, read_rows


class StudyRow(Row):
    """One row of artifacts/studies/<study>/<key>.csv; `sparsemm.evaluate.rows.tabulate` explains its columns."""

    model: str
    study: str
    task: str
    condition: str
    setting: str
    level: float | None
    budget: int | None
    kept_slots: float | None
    bytes: int | None
    metric: str
    value: float
    n: int | None
    pages: int | None
    seeds: int | None
    spread: float | None
    ci_low: float | None
    ci_high: float | None
    against: str | None
    diff: float | None
    diff_ci_low: float | None
    diff_ci_high: float | None
    verdict: str | None
    needed: int | None
    steady: float | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_page_has_no_interval(cls, cells: Any) -> Any:
        """Removes interval and verdict of a row about a single page, because resampling one page changes nothing."""
        count = cells.get("pages") or cells.get("n")
        if count and str(count).isdecimal() and int(count) < 2:
            cells = cells | dict.fromkeys(("ci_low", "ci_high", "diff_ci_low", "diff_ci_high", "verdict"))
        return cells

    @model_validator(mode="after")
    def _check(self) -> StudyRow:
        check_interval(self.ci_low, self.ci_high, "the interval of value")
        check_interval(self.diff_ci_low, self.diff_ci_high, "the interval of diff")
        if self.against and self.diff is None:
            raise ValueError("a comparison without a difference")
        return self

    @property
    def estimate(self) -> Estimate:
        """Returns the value with its interval."""
        return Estimate(self.value, self.ci_low, self.ci_high)

    @property
    def difference(self) -> Estimate | None:
        """Returns setting minus `against` with the interval of this paired difference; None without a comparison."""
        return None if self.diff is None else Estimate(self.diff, self.diff_ci_low, self.diff_ci_high)

    @property
    def of_sparsemm(self) -> bool:
        """Tells whether the row is about `sparsemm`, the method that conclusions are about."""
        return self.setting == PAPER

    @property
    def against_full(self) -> bool:
        """Tells whether the row is compared with the full cache."""
        return self.against == FULL


Rows = Sequence[StudyRow]


def read_study(path: Path, study: str, key: str) -> list[StudyRow]:
    """Reads the rows that a study of a model wrote.

    Raises:
        DataError: if the file is malformed or empty.
    """
    rows = read_rows(path, StudyRow, {"study": study, "model": key})
    if not rows:
        raise DataError("no row", where=str(path), hint=HINT)
    return rows


Group = Literal["derived", "measured", "compared"]
GROUPS: tuple[Group, ...] = ("derived", "measured", "compared")
STUDIES = tuple(sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py")))


class Table(NamedTuple):
    """A table of one model in the report; the first cell names a row."""

    caption: str
    header: list[str]
    rows: list[list[str]]


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study: its options, how it runs, and its words in the report.

    Attributes:
        params: class of its options, which params.yaml has in `studies` under the group and the name of the file.
        run: takes what the study works with and its options, and returns rows. A study that runs a model works with
            `sparsemm.studies.common.experiment.Experiment`, a derived one with
            `sparsemm.studies.common.evaluated.Evaluated`.
        group: "measured" runs the model, "compared" also reads the scores over the data sets of `robustness`, and
            "derived" reads what the evaluate and profile stages wrote. Each is a stage of dvc.yaml.
        title: heading in the report.
        question: what is asked and how, in one or two sentences.
        conclusion: takes the rows of all models that count as evidence, and returns in a sentence or two what follows
            from their intervals and numbers; empty if they show nothing.
        headline: tells whether a row with a difference is drawn in the chart over all models.
        level: name of the horizontal axis if rows have levels.
        drawn: selects the rows of one model that are drawn in its charts.
        open: whether the chart over all models is always visible, as for the strongest evidence, or folded.
        tables: returns the tables of one model from its rows and the methods that were refused somewhere, which the
            report shows in place of a list of all rows.
        columns: columns that its rows have beside those of every study.
    """

    params: type[BaseModel]
    run: Callable[[Any, Any], list[Cells]]
    group: Group = "measured"
    title: str
    question: str
    conclusion: Callable[[Rows], str]
    headline: Callable[[StudyRow], bool]
    level: str = "level"
    drawn: Callable[[Rows], Rows] = lambda rows: rows
    open: bool = False
    tables: Callable[[Rows, Sequence[str]], Sequence[Table]] | None = None
    columns: tuple[str, ...] = ()


@cache
def load(name: str) -> Study:
    """Returns the study that a file of this folder declares."""
    study: Study = import_module(f"{__name__}.{name}").STUDY
    return study


def in_group(group: Group) -> tuple[str, ...]:
    """Returns the names of a group's studies."""
    return tuple(name for name in STUDIES if load(name).group == group)


def tally(rows: Iterable[StudyRow]) -> dict[str, int]:
    """Counts each of `VERDICTS`."""
    verdicts = [row.verdict for row in rows]
    return {word: verdicts.count(word) for word in VERDICTS}


def compared(rows: Iterable[StudyRow]) -> str:
    """Describes the verdicts of some comparisons and the range of their differences; empty if there is none."""
    rows = [row for row in rows if row.verdict]
    if not rows:
        return ""
    counts = ", ".join(f"{word} in {count}" for word, count in tally(rows).items() if count)
    return f"{counts} of {len(rows)} ({spread([row.diff for row in rows if row.diff is not None], '+')})"


def spread(values: Sequence[float], sign: str = "") -> str:
    """Formats the smallest and the largest value: "0.12 to 0.30", or one number if they are the same."""
    least, most = (f"{value + 0.0:{sign}.2f}" for value in (min(values), max(values)))
    return least if least == most else f"{least} to {most}"


def sentence(start: str, parts: Iterable[str]) -> str:
    """Joins `start` and the parts that are not empty to one sentence; empty if all are."""
    text = "; ".join(part for part in parts if part)
    return f"{start}{text}." if text else ""


def against_each(rows: Rows, names: Iterable[str] | None = None) -> list[str]:
    """Describes the comparisons with every name in `against`: "snapkv: better in 3 of 6 (+0.02 to +0.20)"."""
    names = dict.fromkeys(row.against or "" for row in rows) if names is None else names
    return [f"{name}: {text}" for name in names if (text := compared(row for row in rows if row.against == name))]
