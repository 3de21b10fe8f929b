"""Stores answers until a table is written, one file per batch and variant, so that a crash loses one batch."""

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
    """The answer to one question; `kept` and `slot_bytes` are those of `sparsemm.evaluate.answers.Reply`."""

    text: str
    kept: int | None
    slot_bytes: int


@dataclass(frozen=True)
class Store:
    """The answers of one model so far.

    Attributes:
        folder: its name is a hash of everything that the answers depend on, so that stale answers are never used.
    """

    folder: Path

    def put(self, unit: str, name: str, index: Sequence[int], answers: Sequence[Answer]) -> None:
        """Stores the answers of a variant to the questions with these numbers, in one atomic write."""
        write_json(self._path(unit, name) / f"{min(index):06d}.json", {"index": list(index), "answers": answers})

    def answers(self, unit: str, name: str) -> dict[int, Answer]:
        """Returns every stored answer of a variant by the number of its question.

        Raises:
            DataError: if a file cannot be read.
        """
        answers: dict[int, Answer] = {}
        for path in sorted(self._path(unit, name).glob("*.json")):
            value = _read(path)
            answers |= {at: Answer(*one) for at, one in zip(value["index"], value["answers"], strict=True)}
        return answers

    def once(self, unit: str, make: Callable[[], Any]) -> Any:
        """Returns what `make` returns (plain JSON), and calls it only once.

        Raises:
            DataError: if the file cannot be read.
        """
        path = self.folder / f"{unit}.json"
        if not path.is_file():
            write_json(path, make())
        return _read(path)

    def clear(self) -> None:
        """Removes all answers of this model, also those for other settings."""
        shutil.rmtree(self.folder.parent, ignore_errors=True)

    def _path(self, unit: str, name: str) -> Path:
        return self.folder / "answers" / unit / name


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read: {error}", where=str(path), hint="remove it and run again") from error
