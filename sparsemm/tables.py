"""Reads the CSV and JSON files that stages write, each row typed once by a pydantic model."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from sparsemm.errors import DataError

HINT = "run its stage again"


class Row(BaseModel):
    """One row of a table: an empty cell of anything but words is None, and unknown columns are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _empty_is_none(cls, cells: Any) -> Any:
        words = {name for name, field in cls.model_fields.items() if field.annotation is str}
        return {name: None if cell == "" and name not in words else cell for name, cell in cells.items()}


AnyRow = TypeVar("AnyRow", bound=Row)
AnyModel = TypeVar("AnyModel", bound=BaseModel)


def check_interval(low: float | None, high: float | None, name: str) -> None:
    """Checks the ends of an interval. Raises ValueError if only one end is there, or they are the wrong way round."""
    if (low is None) != (high is None) or (low is not None and high is not None and low > high):
        raise ValueError(f"{name} is no interval: {low}, {high}")


def read_rows(path: Path, kind: type[AnyRow], expected: Mapping[str, str] | None = None) -> list[AnyRow]:
    """The rows of a CSV file, but those that say in a column `refused` why nothing was measured.

    Args:
        path: the file.
        kind: what a row is; every field without a default must be a column.
        expected: cells that are the same in every row, such as the model's key.

    Raises:
        DataError: if the file cannot be read, a column is missing, or a cell is not what `kind` says.
    """
    try:
        with open(path, newline="", encoding="utf-8") as handle:
            reader = csv.DictReader(handle)
            columns, cells = set(reader.fieldnames or ()), list(reader)
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read: {error}", where=str(path), hint=HINT) from error
    required = {name for name, field in kind.model_fields.items() if field.is_required()}
    if missing := sorted(required - columns):
        raise DataError(f"columns {missing} are missing", where=str(path), hint=HINT)
    rows = []
    for number, row in enumerate(cells, start=2):
        where = f"{path}, line {number}"
        for column, value in (expected or {}).items():
            if row[column] != value:
                raise DataError(f"a row of {row[column]!r}, not of {value!r}", where=where, hint=HINT)
        if not row.get("refused"):
            rows.append(_checked(kind, row, where))
    return rows


def read_json(path: Path, kind: type[AnyModel]) -> AnyModel:
    """The values of a JSON file. Raises DataError if the file cannot be read, or is not what `kind` says."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read as JSON: {error}", where=str(path), hint=HINT) from error
    return _checked(kind, value, str(path))


def _checked(kind: type[AnyModel], value: Any, where: str) -> AnyModel:
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise DataError(f"{place + ': ' if place else ''}{first['msg']}", where=where, hint=HINT) from error
