"""What the stages wrote about one model, checked."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsemm.errors import DataError
from sparsemm.params import Params
from sparsemm.scores import ScoreTable

Row = dict[str, str]
SHARES = (0.01, 0.02, 0.05, 0.10, 0.20)
INTERVALS = (("ci_low", "ci_high"), ("diff_ci_low", "diff_ci_high"), ("diff_full_ci_low", "diff_full_ci_high"))
DIFFERENCES = ("diff_vs_sparsemm", *INTERVALS[1], "diff_vs_full", *INTERVALS[2])
# Columns of a table: numbers that every row has, numbers that may be empty, words.
EVALUATION = (("kept_slots", "bytes", "value", "n"), ("budget", *INTERVALS[0], *DIFFERENCES))
EVALUATION_WORDS = ("model", "task", "method", "metric")
PROFILE = (
    (
        *("prompt_length", "prefill_ms", "compression_share", "decode_ms_per_token", "decode_ratio_to_full"),
        *("tokens_per_second", "roofline_ms", "peak_bytes", "kept_bytes", "full_bytes"),
    ),
    ("budget",),
)
PROFILE_WORDS = ("model", "method")
LATER = ("pages", "draws")  # columns that older tables do not have
WHOLE = ("budget", "bytes", "n", *LATER, "prompt_length", "peak_bytes", "kept_bytes", "full_bytes")
POSITIVE = ("n", *LATER, "prompt_length", "decode_ms_per_token", "peak_bytes", "full_bytes", "kept_slots")


@dataclass(frozen=True)
class Results:
    """Everything the report knows of a model.

    Attributes:
        key, note: from params.yaml; a note declares a test model.
        card: of a small checkpoint, or empty.
        align: metrics of the align stage.
        table: head scores.
        evaluation: rows of artifacts/evaluate/<key>.csv, empty if not evaluated yet.
        profile: rows of artifacts/profile/<key>.csv, empty if not profiled yet.
        machine: device and versions behind the profile.
    """

    key: str
    note: str
    card: dict[str, Any]
    align: dict[str, Any]
    table: ScoreTable
    evaluation: list[Row]
    profile: list[Row]
    machine: dict[str, Any]

    @property
    def name(self) -> str:
        """The key, marked if the model is a declared test model."""
        return f"{self.key} *" if self.note else self.key

    @property
    def label(self) -> str:
        """The key with its note, as every table shows it."""
        return f"{self.key} ({self.note})" if self.note else self.key

    def tasks(self) -> list[str]:
        """Tasks in the order they were run."""
        return list(dict.fromkeys(row["task"] for row in self.evaluation))

    def methods(self) -> list[str]:
        """Methods in the order they were run."""
        return list(dict.fromkeys(row["method"] for row in self.evaluation))

    def row(self, task: str, method: str, budget: str) -> Row | None:
        """One row of the evaluation, or None."""
        wanted = (task, method, budget)
        return next((r for r in self.evaluation if (r["task"], r["method"], r["budget"]) == wanted), None)

    def budgets(self) -> list[str]:
        """Budgets that were evaluated, rising."""
        return sorted({row["budget"] for row in self.evaluation if row["budget"]}, key=int)


def bars(rows: Sequence[Row]) -> NDArray[np.float64] | None:
    """(2, n) float64, how far the interval of every value reaches down and up; None where one has none."""
    if not all(row["ci_low"] for row in rows):
        return None
    value, low, high = (np.array([float(row[c]) for row in rows]) for c in ("value", "ci_low", "ci_high"))
    return np.clip(np.stack([value - low, high - value]), 0, None)


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise DataError(f"not JSON: {error}", where=str(path), hint="run its stage again") from error
    return value if isinstance(value, dict) else {}


def _rows(path: Path, key: str, numbers: tuple[tuple[str, ...], tuple[str, ...]], words: tuple[str, ...]) -> list[Row]:
    if not path.is_file():
        return []
    always, sometimes = numbers
    try:
        with open(path, newline="", encoding="utf-8") as handle:
            reader = csv.DictReader(handle)
            missing = {*always, *sometimes, *words} - set(reader.fieldnames or ())
            rows = list(reader)
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"not CSV: {error}", where=str(path), hint="run its stage again") from error
    if missing:
        raise DataError(f"columns {sorted(missing)} are missing", where=str(path), hint="run its stage again")
    for number, row in enumerate(rows, start=2):
        where = f"{path}, line {number}"
        if row["model"] != key:
            raise DataError(f"a row of {row['model']!r}", where=where, hint="run its stage again")
        for column in (*always, *sometimes, *(column for column in LATER if column in row)):
            if not _is_number(column, row[column]) and not (column in (*sometimes, *LATER) and row[column] == ""):
                raise DataError(f"{column} is {row[column]!r}", where=where, hint="run its stage again")
        for low, high in INTERVALS:
            ends = row.get(low, ""), row.get(high, "")
            if any(ends) != all(ends) or (all(ends) and float(ends[0]) > float(ends[1])):
                raise DataError(f"{low} is {ends[0]!r}, {high} {ends[1]!r}", where=where, hint="run its stage again")
    return rows


def _is_number(column: str, text: str | None) -> bool:
    """Whether a cell (None where the line is too short) is a finite number of its column's kind."""
    try:
        value = float(text or "")
        whole = column not in WHOLE or (text or "").isdecimal()
    except ValueError:
        return False
    return math.isfinite(value) and whole and (value > 0 or column not in POSITIVE)


def without_hollow(row: Row) -> Row:
    """A row without intervals and verdict where it is of one page: resampling one page cannot move anything."""
    counted = row.get("pages") or row["n"]
    if not counted or float(counted) >= 2:
        return row
    return row | {column: "" for column in (*(end for ends in INTERVALS for end in ends), "verdict") if column in row}


def read_profile(folder: Path, key: str) -> tuple[list[Row], dict[str, Any]]:
    """Rows of <key>.csv, empty if there is none, and the machine they are of.

    Raises:
        DataError: if a file is not what its stage writes.
    """
    return _rows(folder / f"{key}.csv", key, PROFILE, PROFILE_WORDS), _json(folder / f"{key}.json")


def read_results(params: Params, key: str, root: Path) -> Results:
    """Read what the stages wrote; evaluation and profile may be missing.

    Raises:
        ScoreTableError: if there is no score table.
        DataError: if a file is not what its stage writes.
    """
    folder = root / "artifacts"
    evaluation = folder / "evaluate" / f"{key}.csv"
    profile, machine = read_profile(folder / "profile", key)
    return Results(
        key=key,
        note=params.models[key].note,
        card=_json(root / params.models[key].checkpoint / "card.json"),
        align=_json(folder / "align" / f"{key}.json"),
        table=ScoreTable.load(folder / "scores" / f"{key}.safetensors"),
        evaluation=[without_hollow(row) for row in _rows(evaluation, key, EVALUATION, EVALUATION_WORDS)],
        profile=profile,
        machine=machine,
    )
