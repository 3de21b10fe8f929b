"""Answers on their way to a table: one file per task, method, budget and batch, so that a crash loses one batch."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsemm.errors import DataError
from sparsemm.files import write_json

Name = tuple[str, int | None]  # method and budget; the full cache has no budget


@dataclass(frozen=True)
class Store:
    """A folder for the answers of one model to one set of questions, whatever methods and budgets are asked for.

    Attributes:
        folder: named after everything the answers depend on, so that none is taken for another.
    """

    folder: Path

    def path(self, task: str, name: Name, shard: int) -> Path:
        """File of one batch."""
        method, budget = name
        return self.folder / "answers" / task / f"{method}-{budget or 'all'}" / f"{shard:06d}.json"

    def has(self, task: str, name: Name, shard: int) -> bool:
        """Whether a batch is answered."""
        return self.path(task, name, shard).is_file()

    def put(self, task: str, name: Name, shard: int, value: dict[str, Any]) -> None:
        """Keep the answers of one batch; the file appears whole or not at all."""
        write_json(self.path(task, name, shard), value)

    def get(self, task: str, name: Name, shard: int) -> dict[str, Any]:
        """What `put` kept.

        Raises:
            DataError: if the file cannot be read.
        """
        path = self.path(task, name, shard)
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"cannot be read: {error}", where=str(path), hint="remove it and run again") from error

    def remove(self) -> None:
        """Forget everything, answers for other params of this model included."""
        shutil.rmtree(self.folder.parent)
