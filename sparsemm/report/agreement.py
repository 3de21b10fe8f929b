"""How far the score tables of a model agree that come from several data sets."""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib.figure import Figure

from sparsemm.errors import DataError
from sparsemm.files import artifacts
from sparsemm.params import Params
from sparsemm.report.figures import WIDTH, png
from sparsemm.report.page import figure, heading, paragraph, section, table
from sparsemm.report.results import Results
from sparsemm.scores import ScoreTable

ANCHOR, TITLE = "agreement", "Do other data sets name the same heads?"


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


def agreement(params: Params, results: list[Results], root: Path, images: dict[str, bytes]) -> str:
    """Heat maps side by side, rank correlation and overlap of the best heads; empty where there is no other table.

    Raises:
        DataError: if a metrics file is not what the align stage writes.
        ScoreTableError: if a table is damaged, or of another model.
    """
    parts: list[str] = []
    rows: list[list[str]] = []
    for result in results:
        others = other_tables(params, result.key, root)
        if others:
            for one in others.values():
                one.check_model(result.table.header["fingerprint"])
            rows += _rows(result, others, root)
            parts.append(_pictures(params, result, others, images))
    if rows:
        header = [
            "model",
            "data set",
            "samples",
            "words read",
            "rank correlation",
            "top 5 % shared",
            "top 10 % shared",
            "split-half r",
        ]
        parts.insert(0, table(header, rows, f"Every table against that of {params.chase.dataset!r}"))
        note = "Two tables cannot agree better than each agrees with itself: the split-half correlation of either."
        parts.insert(1, paragraph(note, "note"))
    return section(ANCHOR, TITLE, *parts) if parts else ""


def _rows(result: Results, others: dict[str, ScoreTable], root: Path) -> list[list[str]]:
    listed = []
    for name, one in others.items():
        read = _words_read(artifacts(root, "align", name) / f"{result.key}.json")
        samples = str(len(one.per_sample))
        overlaps = [f"{result.table.top_overlap(one, fraction):.0%}" for fraction in (0.05, 0.10)]
        correlation = f"{result.table.rank_correlation(one):.3f}"
        listed.append([result.label, name, samples, read, correlation, *overlaps, f"{one.split_half():.3f}"])
    return listed


def _words_read(path: Path) -> str:
    """Share of the words that the model says, from the align stage's metrics; "-" if they are missing."""
    try:
        return f"{json.loads(path.read_text(encoding='utf-8'))['share_found']:.1%}"
    except FileNotFoundError:
        return "-"
    except (ValueError, KeyError, TypeError) as error:
        hint = "run the align stage again"
        raise DataError(f"not what the align stage writes: {error!r}", where=str(path), hint=hint) from error


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
