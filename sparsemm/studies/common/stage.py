"""The study stage: one study of one model. A stopped one goes on where it was; all rows are written at once."""

from __future__ import annotations

from pathlib import Path

from sparsemm.errors import ParamsError
from sparsemm.evaluate.rows import COLUMNS, Row, write_table
from sparsemm.params import Params
from sparsemm.studies import load


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
    params.model(key)
    study, given = load(name), made[name]
    if study.group == "derived":
        from sparsemm.evaluate.samples import Evaluated

        write(study.run(Evaluated(params, name, key, root, given), given), name, key, root)
        return
    from sparsemm.studies.common.bench import Bench

    bench = Bench(params, name, key, root)
    write(study.run(bench, given), name, key, root)
    bench.store.clear()


def write(rows: list[Row], name: str, key: str, root: Path) -> None:
    """Rows as CSV, and their means as metrics, task -> condition -> setting -> level or budget."""
    write_table(root / "artifacts" / "studies" / name, key, COLUMNS, rows, ("task", "condition", "setting"))
