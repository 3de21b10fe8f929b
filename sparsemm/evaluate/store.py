"""Answers on their way to a table: one file per batch and variant, so that a crash loses one batch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sparsemm.errors import DataError
from sparsemm.files import write_json


class Answer(NamedTuple):
    """What one question was answered; `kept` and `slot_bytes` as in `sparsemm.evaluate.answers.Reply`."""

    text: str
    kept: int | None
    slot_bytes: int


@dataclass(frozen=True)
class Store:
    """What one model was asked so far.

    Attributes:
        folder: named after everything the answers depend on, so that none is taken for another.
    """

    folder: Path

    def put(self, unit: str, name: str, index: Sequence[int], answers: Sequence[Answer]) -> None:
        """Keep the answers of a variant to the questions of these numbers; the file appears whole or not at all."""
        write_json(self._path(unit, name) / f"{min(index):06d}.json", {"index": list(index), "answers": answers})

    def answers(self, unit: str, name: str) -> dict[int, Answer]:
        """Every answer of a variant that was kept, by the number of its question.

        Raises:
            DataError: if a file cannot be read.
        """
        found: dict[int, Answer] = {}
        for path in sorted(self._path(unit, name).glob("*.json")):
            value = _read(path)
            found |= {at: Answer(*one) for at, one in zip(value["index"], value["answers"], strict=True)}
        return found

    def once(self, unit: str, make: Callable[[], Any]) -> Any:
        """What `make` returns (plain JSON), computed once.

        Raises:
            DataError: if the file cannot be read.
        """
        path = self.folder / f"{unit}.json"
        if not path.is_file():
            write_json(path, make())
        return _read(path)

    def clear(self) -> None:
        """Remove everything, also what was kept for other settings of this model."""
        shutil.rmtree(self.folder.parent, ignore_errors=True)

    def _path(self, unit: str, name: str) -> Path:
        return self.folder / "answers" / unit / name


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read: {error}", where=str(path), hint="remove it and run again") from error
