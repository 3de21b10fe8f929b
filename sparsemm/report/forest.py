"""Paired differences with their intervals, one line each, beside the zero that decides a verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from textwrap import wrap
from typing import Any

from sparsemm.report.charts import MODELS, Chart, figure, legend
from sparsemm.report.results import Row
from sparsemm.report.styles import INK, style

PITCH, GAP = 8, 12  # pixels from one interval to the next, and between groups
LINE, WIDEST = 12, 22  # pixels of a label's line, and letters in it
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x")
Groups = Mapping[str, Sequence[Row]]


def against_methods(groups: Groups) -> Chart:
    """A forest whose colours are the methods that rows are held against."""
    return _forest(groups, lambda row: row["against"], lambda name, _: style(name).for_plotly()["marker"] | {"size": 6})


def of_models(groups: Groups) -> Chart:
    """A forest whose colours are models."""

    def look(_: str, number: int) -> dict[str, Any]:
        return {"color": MODELS[number % len(MODELS)], "symbol": SYMBOLS[number % len(SYMBOLS)], "size": 6}

    return _forest(groups, lambda row: row["model"], look)


def said(row: Row) -> str:
    """A row's difference, its interval and its verdict in words."""
    at = [
        row["task"],
        row["condition"],
        *(f"{n} {row[c]}" for n, c in (("level", "level"), ("B =", "budget")) if row[c]),
    ]
    low, high = float(row["diff_ci_low"]), float(row["diff_ci_high"])
    return (
        f"{row['model']}, {', '.join(filter(None, at))}<br>{row['setting']} minus {row['against']}: "
        f"{float(row['diff']):+.3f} [{low:+.3f}, {high:+.3f}], {row['verdict']}"
    )


def _forest(groups: Groups, name: Callable[[Row], str], look: Callable[[str, int], dict[str, Any]]) -> Chart:
    placed: dict[str, list[tuple[float, Row]]] = {}
    labels = [_wrapped(label) for label in groups]
    ticks, edges, at = [], [], 0.0
    for label, rows in zip(labels, groups.values(), strict=True):
        tall = max(PITCH * (len(rows) - 1) + GAP, LINE * (label.count("<br>") + 1))
        ticks.append(at + tall / 2)
        first = at + tall / 2 - PITCH * (len(rows) - 1) / 2
        for place, row in enumerate(rows):
            placed.setdefault(name(row), []).append((first + PITCH * place, row))
        at += tall
        edges.append(at)
    data = [_trace(one, rows, look(one, number)) for number, (one, rows) in enumerate(placed.items())]
    across = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "line": {"color": "var(--line)", "width": 1}}
    zero = {"type": "line", "yref": "paper", "x0": 0, "x1": 0, "y0": 0, "y1": 1, "line": {"color": INK, "width": 1}}
    return figure(
        data,
        120 + round(1.25 * at),
        xaxis={"title": {"text": "difference, with 95 % interval"}},
        yaxis={"tickvals": ticks, "ticktext": labels, "range": [at, 0], "showgrid": False},
        shapes=[zero, *(across | {"y0": edge, "y1": edge} for edge in edges[:-1])],
        legend=legend() | {"y": -58 / (120 + 1.25 * at)},
    )


def _wrapped(label: str) -> str:
    """A label in lines short enough for a phone."""
    return "<br>".join(line for part in label.split("<br>") for line in wrap(part, WIDEST))


def _trace(name: str, placed: Sequence[tuple[float, Row]], marker: dict[str, Any]) -> dict[str, Any]:
    reach = [
        (float(row["diff_ci_high"]) - float(row["diff"]), float(row["diff"]) - float(row["diff_ci_low"]))
        for _, row in placed
    ]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [float(row["diff"]) for _, row in placed],
        "y": [place for place, _ in placed],
        "error_x": {
            "array": [round(max(up, 0.0), 6) for up, _ in reach],
            "arrayminus": [round(max(down, 0.0), 6) for _, down in reach],
            "symmetric": False,
            "thickness": 1.4,
            "width": 0,
        },
        "marker": marker,
        "text": [said(row) for _, row in placed],
        "hovertemplate": "%{text}<extra></extra>",
    }
