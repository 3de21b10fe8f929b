"""The study stage: one study of one model. A stopped study resumes, and all rows are written at the end."""

from __future__ import annotations

from pathlib import Path

from sparsemm.errors import ParamsError
from sparsemm.evaluate.rows import COLUMNS, Row, write_table
from sparsemm.params import Params
from sparsemm.studies import load


def run(params: Params, name: str, key: str, root: Path = Path(".")) -> None:
    """Runs a study and writes artifacts/studies/<name>/<key>.csv and .json.

    Raises:
        ParamsError: if there is no such study or model in params.yaml.
        DataError: if what the study reads is missing, malformed or too small.
        ScoreTableError: if the score table is missing or of another model.
    """
    params = params.of(key)
    enabled = params.studies.enabled()
    if name not in enabled:
        known = ", ".join(enabled) or "none"
        raise ParamsError(f"no study {name!r}", where="params.yaml: studies", hint=f"known: {known}")
    params.model(key)
    study, options = load(name), enabled[name]
    if study.group == "derived":
        from sparsemm.studies.common.evaluated import Evaluated

        write(study.run(Evaluated(params, name, key, root, options), options), name, key, root)
        return
    from sparsemm.studies.common.experiment import Experiment

    experiment = Experiment(params, name, key, root)
    write(study.run(experiment, options), name, key, root)
    experiment.store.clear()


def write(rows: list[Row], name: str, key: str, root: Path) -> None:
    """Writes rows as CSV, and their values as metrics, by task, condition, setting and level or budget."""
    write_table(
        root / "artifacts" / "studies" / name,
        key,
        (*COLUMNS, *load(name).columns),
        rows,
        ("task", "condition", "setting"),
    )
