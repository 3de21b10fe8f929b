"""The study stage: one study of one model; resumable per unit, written when whole."""

from __future__ import annotations

import csv
import importlib
from pathlib import Path
from typing import Any

from sparsemm.errors import ParamsError
from sparsemm.files import atomic_path, write_json
from sparsemm.params import Params
from sparsemm.studies.names import DERIVED
from sparsemm.studies.rows import COLUMNS, Row


def run(params: Params, name: str, key: str, root: Path = Path(".")) -> None:
    """Write artifacts/studies/<name>/<key>.csv and .json.

    Raises:
        ParamsError: if there is no such study or model in params.yaml.
        DataError: if what the study reads is missing, malformed or too small.
        ScoreTableError: if the score table is missing or of another model.
    """
    params = params.of(key)
    made = params.studies.made()
    if name not in made:
        known = ", ".join(made) or "none"
        raise ParamsError(f"no study {name!r}", where="params.yaml: studies", hint=f"known: {known}")
    given = made[name]
    module = importlib.import_module(f"sparsemm.studies.{name}")
    if name in DERIVED:
        write(module.run(params, given, key, root), name, key, root)
        return
    from sparsemm.studies.bench import Bench

    bench = Bench(params, name, key, root)
    write(module.run(bench, given), name, key, root)
    bench.clear()


def write(rows: list[Row], name: str, key: str, root: Path) -> None:
    """Rows as CSV, and their means as metrics, task -> condition -> setting -> level or budget."""
    folder = root / "artifacts" / "studies" / name
    with atomic_path(folder / f"{key}.csv") as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    metrics: dict[str, Any] = {}
    for row in rows:
        at = metrics
        for part in (row["task"], row["condition"], row["setting"]):
            at = at.setdefault(part, {}) if part else at
        at[" ".join(str(row[name]) for name in ("level", "budget") if row[name] != "") or "all"] = row["value"]
    write_json(folder / f"{key}.json", metrics)
