"""How far the score tables of a model agree that come from several data sets."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from sparsemm.errors import DataError
from sparsemm.files import artifacts
from sparsemm.params import Params
from sparsemm.report.figures import WIDTH, png
from sparsemm.report.page import details, figure, heading, paragraph, section, table
from sparsemm.report.results import Results
from sparsemm.scores import ScoreTable

ANCHOR, TITLE = "agreement", "Do other data sets name the same heads?"
COLUMNS = ("covariate", "bin", "tokens", "top_heads", "all_heads")


def other_tables(params: Params, key: str, root: Path) -> dict[str, ScoreTable]:
    """The tables of a model over the data sets of `robustness`, as far as they are there."""
    paths = {name: artifacts(root, "scores", name) / f"{key}.safetensors" for name in params.robustness}
    return {name: ScoreTable.load(path) for name, path in paths.items() if path.is_file()}


def heat_maps(tables: dict[str, ScoreTable]) -> bytes:
    """Share of the score of every head, layers down and heads across, data set beside data set on one scale."""
    drawn = Figure(figsize=(WIDTH * min(len(tables), 3) / 1.6, 3.2 * -(-len(tables) // 3)), layout="constrained")
    axes = drawn.subplots(-(-len(tables) // 3), min(len(tables), 3), squeeze=False)
    shares = {name: 100 * one.normalised() for name, one in tables.items()}
    most = max(share.max() for share in shares.values())
    for axis in axes.flat[len(tables) :]:
        axis.set_visible(False)
    for axis, (name, share) in zip(axes.flat, shares.items(), strict=False):
        image = axis.imshow(share, aspect="auto", cmap="viridis", vmin=0, vmax=most)
        axis.set(xlabel="head", ylabel="layer", title=name)
    drawn.colorbar(image, ax=axes, label="share of the score, %")
    return png(drawn)


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


def agreement(params: Params, results: list[Results], root: Path, images: dict[str, bytes]) -> str:
    """Heat maps side by side, rank correlation and overlap of the best heads, and what the hits depend on.

    Empty where there is neither another table nor a covariates file.

    Raises:
        DataError: if a covariates file is not what the chase stage writes.
        ScoreTableError: if a table is damaged, or of another model.
    """
    parts: list[str] = []
    rows: list[list[str]] = []
    for result in results:
        others = other_tables(params, result.key, root)
        if others:
            for one in others.values():
                one.check_model(result.table.header["fingerprint"])
            rows += _rows(result, others)
            parts.append(_pictures(params, result, others, images))
    if rows:
        header = [
            "model",
            "data set",
            "samples",
            "rank correlation",
            "top 5 % shared",
            "top 10 % shared",
            "split-half r",
        ]
        parts.insert(0, table(header, rows, f"Every table against that of {params.chase.dataset!r}"))
        note = "Two tables cannot agree better than each agrees with itself: the split-half correlation of either."
        parts.insert(1, paragraph(note, "note"))
    for result in results:
        if found := read_covariates(artifacts(root, "scores") / f"{result.key}.covariates.csv"):
            parts.append(_covariates(result, found))
    return section(ANCHOR, TITLE, *parts) if parts else ""


def _rows(result: Results, others: dict[str, ScoreTable]) -> list[list[str]]:
    listed = []
    for name, one in others.items():
        overlaps = [f"{result.table.top_overlap(one, fraction):.0%}" for fraction in (0.05, 0.10)]
        correlation = f"{result.table.rank_correlation(one):.3f}"
        listed.append([result.label, name, str(len(one.per_sample)), correlation, *overlaps, f"{one.split_half():.3f}"])
    return listed


def _pictures(params: Params, result: Results, others: dict[str, ScoreTable], images: dict[str, bytes]) -> str:
    image = images[f"agreement-{result.key}"] = heat_maps({params.chase.dataset: result.table, **others})
    said = "; ".join(
        f"{name}: rank correlation {result.table.rank_correlation(one):.2f}" for name, one in others.items()
    )
    shown = figure(
        image,
        f"Heat maps of visual scores of {result.key} over {len(others) + 1} data sets. {said}.",
        "Share of the visual score of every head, one picture for each data set, on one scale.",
    )
    return heading(result.name) + shown


def _covariates(result: Results, rows: list[list[str]]) -> str:
    listed = [
        [f"{name.replace('_', ' ')} {value}", n, f"{float(a):.1%}", f"{float(b):.1%}"] for name, value, n, a, b in rows
    ]
    header = ["what is on the page", "answer tokens", "best 5 % of heads", "all heads"]
    caption = f"{result.label}: share of answer tokens at whose box the heads look"
    rates = np.array([float(row[3]) for row in rows])
    spread = f"Hit rate of the best heads by size, script and kind of the text: {rates.min():.0%} to {rates.max():.0%}"
    return details(f"{result.name}: {spread}", table(header, listed, caption))
