"""Score tables of other data sets, a list per model: what `sources` compares, by the hash of their bytes."""

from __future__ import annotations

import json
from pathlib import Path

from sparsemm.errors import DataError, ScoreTableError
from sparsemm.files import sha256_file, write_json
from sparsemm.params import Params
from sparsemm.scores import ScoreTable

FOLDER = Path("artifacts") / "studies" / "tables"
HINT = "run `sparsemm tables` after the chases over `robustness`"


def table_path(root: Path, dataset: str, key: str) -> Path:
    """Where the chase over a data set of `robustness` leaves a model's table."""
    return root / "artifacts" / "scores" / "also" / dataset / f"{key}.safetensors"


def run(params: Params, root: Path = Path(".")) -> None:
    """Write artifacts/studies/tables/<key>.json of every model: data set of `robustness` -> SHA-256 of its table.

    Raises:
        ScoreTableError: if a table is missing.
    """
    for key in params.models:
        found = {}
        for dataset in sorted(params.robustness):
            path = table_path(root, dataset, key)
            if not path.is_file():
                hint = f"run `sparsemm chase {key} --dataset {dataset}`"
                raise ScoreTableError("no score table", where=str(path), hint=hint)
            found[dataset] = sha256_file(path)
        write_json(root / FOLDER / f"{key}.json", found)


def read_tables(root: Path, key: str, own: ScoreTable) -> dict[str, ScoreTable]:
    """The listed tables of a model, by data set; they are of the model of `own`.

    Raises:
        DataError: if the list is missing or malformed.
        ScoreTableError: if a table is not the listed one, is damaged or of another model.
    """
    path = root / FOLDER / f"{key}.json"
    try:
        listed = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"cannot be read: {error}", where=str(path), hint=HINT) from error
    found = {}
    for dataset, digest in listed.items():
        where = table_path(root, dataset, key)
        if not where.is_file() or sha256_file(where) != digest:
            raise ScoreTableError("not the table that is listed", where=str(where), hint=HINT)
        found[dataset] = ScoreTable.load(where)
        found[dataset].check_model(own.header["fingerprint"])
    return found
