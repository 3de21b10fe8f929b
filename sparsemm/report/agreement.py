"""Score tables of a model over other data sets, and what its hits depend on."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

from sparsemm.errors import DataError
from sparsemm.files import artifacts
from sparsemm.params import Params
from sparsemm.report.picture import WIDTH, Figure, png
from sparsemm.report.results import Results
from sparsemm.scores import ScoreTable

COLUMNS = ("covariate", "bin", "tokens", "top_heads", "all_heads")


class Agreement(NamedTuple):
    """Of one model: its tables over other data sets, by their names, and rows of its covariates file."""

    tables: dict[str, ScoreTable]
    covariates: list[list[str]]


def read_agreement(params: Params, result: Results, root: Path) -> Agreement:
    """What there is over the data sets of `robustness`.

    Raises:
        DataError: if the covariates file is not what the chase stage writes.
        ScoreTableError: if a table is damaged, or of another model.
    """
    paths = {name: artifacts(root, "scores", name) / f"{result.key}.safetensors" for name in params.robustness}
    tables = {name: ScoreTable.load(path) for name, path in paths.items() if path.is_file()}
    for one in tables.values():
        one.check_model(result.table.header["fingerprint"])
    return Agreement(tables, read_covariates(artifacts(root, "scores") / f"{result.key}.covariates.csv"))


def read_covariates(path: Path) -> list[list[str]]:
    """Rows of a covariates file; none if the file is missing.

    Raises:
        DataError: if it is not what the chase stage writes.
    """
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as handle:
        header, *rows = list(csv.reader(handle)) or [[]]
    if tuple(header) != COLUMNS or any(len(row) != len(COLUMNS) for row in rows):
        raise DataError("not what the chase stage writes", where=str(path), hint="run the chase stage again")
    return rows


def most_share(tables: dict[str, ScoreTable]) -> float:
    """The largest share of a head in percent, where the one scale of all maps ends."""
    return max(100 * float(one.normalised().max()) for one in tables.values())


def heat_maps(tables: dict[str, ScoreTable]) -> bytes:
    """Share of the score of every head, layers down and heads across, data set beside data set on one scale."""
    drawn = Figure(figsize=(WIDTH * min(len(tables), 3) / 1.6, 3.2 * -(-len(tables) // 3)), layout="constrained")
    axes = drawn.subplots(-(-len(tables) // 3), min(len(tables), 3), squeeze=False)
    most = most_share(tables)
    for axis in axes.flat[len(tables) :]:
        axis.set_visible(False)
    for axis, (name, one) in zip(axes.flat, tables.items(), strict=False):
        image = axis.imshow(100 * one.normalised(), aspect="auto", cmap="magma", vmin=0, vmax=most)
        axis.set(xlabel="head", ylabel="layer", title=name)
    drawn.colorbar(image, ax=axes, label="share of the score, %")
    return png(drawn)
