"""The study stage: one study of one model; resumable per unit, written when whole."""

from __future__ import annotations

import importlib
from pathlib import Path

from sparsemm.errors import ParamsError
from sparsemm.evaluate.rows import COLUMNS, Row, write_table
from sparsemm.params import Params
from sparsemm.studies.names import DERIVED


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
        rows = module.run(params, given, key, root)
    else:
        from sparsemm.studies.bench import Bench

        bench = Bench(params, name, key, root)
        rows = module.run(bench, given)
    write(rows, name, key, root)
    if name not in DERIVED:
        bench.store.clear()


def write(rows: list[Row], name: str, key: str, root: Path) -> None:
    """Rows as CSV, and their means as metrics, task -> condition -> setting -> level or budget."""
    write_table(root / "artifacts" / "studies" / name, key, COLUMNS, rows, ("task", "condition", "setting"))
