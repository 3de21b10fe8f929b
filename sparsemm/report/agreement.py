"""Score tables of a model over other data sets, and what its hits depend on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from sparsemm.chase.covariates import Rates
from sparsemm.errors import DataError
from sparsemm.files import result_path
from sparsemm.params import Params
from sparsemm.report.covariates import read_covariates
from sparsemm.report.picture import WIDTH, Figure, png
from sparsemm.report.results import Results
from sparsemm.scores import ScoreTable


class Agreement(NamedTuple):
    """Of one model, by names of data sets: tables over others, share of the words read there, and hit rates of all."""

    tables: dict[str, ScoreTable]
    words: dict[str, float | None]
    rates: dict[str, list[Rates]]


def read_agreement(params: Params, result: Results, root: Path) -> Agreement:
    """What there is over `chase.dataset` and the data sets of `robustness`.

    Raises:
        DataError: if a covariates or metrics file is not what its stage writes.
        ScoreTableError: if a table is damaged, or of another model.
    """
    paths = {name: result_path(root, "scores", result.key, ".safetensors", name) for name in params.robustness}
    tables = {name: ScoreTable.load(path) for name, path in paths.items() if path.is_file()}
    for one in tables.values():
        one.check_model(result.table.header["fingerprint"])
    words = {name: _words_read(result_path(root, "align", result.key, ".json", name)) for name in tables}
    places = {params.chase.dataset: None} | {name: name for name in params.robustness}
    files = {name: result_path(root, "scores", result.key, ".covariates.csv", also) for name, also in places.items()}
    rates = {name: rows for name, path in files.items() if (rows := read_covariates(path))}
    return Agreement(tables, words, rates)


def _words_read(path: Path) -> float | None:
    """Share of the words that the model says, from the align stage's metrics; None if they are missing."""
    try:
        return float(json.loads(path.read_text(encoding="utf-8"))["share_found"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        hint = "run the align stage again"
        raise DataError(f"not what the align stage writes: {error!r}", where=str(path), hint=hint) from error


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
