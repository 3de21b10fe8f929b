"""Studies: one question each, asked about a model, with its own table and its own part of the report.

Every file of this folder is a study and declares it as `STUDY`: its options in params.yaml, its words, and how it runs.
Nothing else lists them. These files import no torch, so that params and the report are fast: what runs a model is
imported where it runs. `common` holds what several studies share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, model_validator

from sparsemm.errors import DataError
from sparsemm.evaluate.rows import FULL, PAPER
from sparsemm.evaluate.rows import Row as Cells
from sparsemm.tables import HINT, VERDICTS, Estimate, Row, interval, read_rows


class StudyRow(Row):
    """One row of artifacts/studies/<study>/<key>.csv; `sparsemm.evaluate.rows.tabulate` says what its columns hold."""

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

    @model_validator(mode="before")
    @classmethod
    def _one_page_has_no_interval(cls, cells: Any) -> Any:
        """Resampling a single page cannot move anything, so such a row has no interval and no verdict."""
        count = cells.get("pages") or cells.get("n")
        if count and str(count).isdecimal() and int(count) < 2:
            cells = cells | dict.fromkeys(("ci_low", "ci_high", "diff_ci_low", "diff_ci_high", "verdict"))
        return cells

    @model_validator(mode="after")
    def _check(self) -> StudyRow:
        interval(self.ci_low, self.ci_high, "the interval of value")
        interval(self.diff_ci_low, self.diff_ci_high, "the interval of diff")
        if self.against and self.diff is None:
            raise ValueError("a comparison without a difference")
        return self

    @property
    def estimate(self) -> Estimate:
        """The value with its interval."""
        return Estimate(self.value, self.ci_low, self.ci_high)

    @property
    def difference(self) -> Estimate | None:
        """Setting minus `against` with the interval of this paired difference; None where nothing is compared."""
        return None if self.diff is None else Estimate(self.diff, self.diff_ci_low, self.diff_ci_high)

    @property
    def of_sparsemm(self) -> bool:
        """Whether the row is of the project's own method, of which conclusions speak."""
        return self.setting == PAPER

    @property
    def against_full(self) -> bool:
        """Whether it is compared with the full cache."""
        return self.against == FULL


Rows = Sequence[StudyRow]


def read_study(path: Path, study: str, key: str) -> list[StudyRow]:
    """The rows that a study of a model wrote.

    Raises:
        DataError: if the file is not what it writes.
    """
    rows = read_rows(path, StudyRow, {"study": study, "model": key})
    if not rows:
        raise DataError("no row", where=str(path), hint=HINT)
    return rows


Group = Literal["derived", "measured", "compared"]
GROUPS: tuple[Group, ...] = ("derived", "measured", "compared")
STUDIES = tuple(sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py")))


@dataclass(frozen=True, kw_only=True)
class Study:
    """Everything that a study declares.

    Attributes:
        params: its options, a class of `sparsemm.params.studies` or one of its own. params.yaml has them in `studies`,
            under the group and the name of the file.
        run: makes its rows from its options and from what it works with: `sparsemm.studies.common.bench.Bench`, or
            `sparsemm.evaluate.samples.Evaluated` for a derived one.
        group: "measured" asks the model; "compared" also reads the scores over the data sets of `robustness`;
            "derived" reads what the evaluate and profile stages wrote. Each is a stage of dvc.yaml.
        title: as the report heads it.
        question: what is asked and how, in one or two sentences.
        conclusion: of the rows of all models that count as evidence, what follows from them in a sentence or two;
            empty where they show nothing. Every word of it has to come from intervals and numbers.
        headline: whether a row with a difference is drawn in the study's own chart over all models.
        level: name of the axis across where rows have levels.
        drawn: of one model's rows, those that are drawn in its charts.
        open: whether the chart over all models is shown at once, as the strongest evidence is, or folded.
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


@cache
def load(name: str) -> Study:
    """What a file of this folder declares."""
    study: Study = import_module(f"{__name__}.{name}").STUDY
    return study


def in_group(group: Group) -> tuple[str, ...]:
    """The names of a group's studies."""
    return tuple(name for name in STUDIES if load(name).group == group)


def tally(rows: Iterable[StudyRow]) -> dict[str, int]:
    """How often each of `VERDICTS` was given."""
    verdicts = [row.verdict for row in rows]
    return {word: verdicts.count(word) for word in VERDICTS}


def compared(rows: Iterable[StudyRow]) -> str:
    """The verdicts of some comparisons in words, and how far their differences reach; empty where there is none."""
    rows = [row for row in rows if row.verdict]
    if not rows:
        return ""
    counts = ", ".join(f"{word} in {count}" for word, count in tally(rows).items() if count)
    return f"{counts} of {len(rows)} ({spread([row.diff for row in rows if row.diff is not None], '+')})"


def spread(values: Sequence[float], sign: str = "") -> str:
    """The least and the largest value: "0.12 to 0.30", or one number where they are the same."""
    least, most = (f"{value + 0.0:{sign}.2f}" for value in (min(values), max(values)))
    return least if least == most else f"{least} to {most}"


def sentence(start: str, parts: Iterable[str]) -> str:
    """`start` and the parts that say anything, as one sentence; empty where none does."""
    said = "; ".join(part for part in parts if part)
    return f"{start}{said}." if said else ""


def against_each(rows: Rows, names: Iterable[str] | None = None) -> list[str]:
    """ "snapkv: better in 3 of 6 (+0.02 to +0.20)" for every name in `against`, in the order they come."""
    names = dict.fromkeys(row.against or "" for row in rows) if names is None else names
    return [f"{name}: {said}" for name in names if (said := compared(row for row in rows if row.against == name))]
