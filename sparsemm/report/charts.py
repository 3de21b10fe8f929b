"""The interactive charts, as plotly figures in plain JSON values; colours like var(--ink) are looked up by the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sparsemm.report.results import Results, Row, bars
from sparsemm.report.styles import INK, style
from sparsemm.scores import ScoreTable

Chart = dict[str, Any]
FAINT = "var(--faint)"
MODELS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#B8860B")


def figure(data: list[dict[str, Any]], height: int, **layout: Any) -> Chart:
    """A figure as the page takes it: traces, and a layout with its height in pixels."""
    return {"data": data, "layout": {"height": height, **layout}}


def legend(below: float = -0.22) -> dict[str, Any]:
    """Below the axes, where it takes no width."""
    return {"orientation": "h", "x": 0, "y": below, "yanchor": "top"}


def heat_map(table: ScoreTable, most: float | None = None) -> Chart:
    """Share of the visual score of every head, in percent: layers down, heads across; `most` is where colours end."""
    share = 100 * table.normalised()
    rank = np.empty(share.size, dtype=np.int64)
    rank[np.argsort(-share.ravel(), kind="stable")] = np.arange(1, share.size + 1)
    cells = {
        "type": "heatmap",
        "z": share.round(4).tolist(),
        "customdata": rank.reshape(share.shape).tolist(),
        "colorscale": "Cividis",
        "zmin": 0,
        "zmax": float(share.max() if most is None else most),
        "xgap": 1,
        "ygap": 1,
        "colorbar": {"title": {"text": "share of the score, %", "side": "right"}, "thickness": 10, "outlinewidth": 0},
        "hovertemplate": "layer %{y}, head %{x}<br>%{z:.2f} % of the score, rank %{customdata}<extra></extra>",
    }
    return figure(
        [cells],
        120 + min(26 * len(share), 620),
        xaxis={"title": {"text": "query head"}, "dtick": max(1, share.shape[1] // 8), "showgrid": False},
        yaxis={
            "title": {"text": "layer"},
            "autorange": "reversed",
            "dtick": max(1, share.shape[0] // 8),
            "showgrid": False,
        },
    )


def sorted_scores(results: Sequence[Results]) -> Chart:
    """Above, the share of every head, best first, as a multiple of an even share; below, the cumulative share."""
    data: list[dict[str, Any]] = []
    for number, result in enumerate(results):
        share = np.sort(result.table.normalised().ravel())[::-1]
        heads = 100 * np.arange(1, len(share) + 1) / len(share)
        line = {"color": MODELS[number % len(MODELS)], "dash": "dot" if result.note else "solid"}
        common = {"type": "scatter", "mode": "lines", "name": result.name, "line": line, "legendgroup": result.key}
        hover = f"{result.key}<br>best %{{x:.1f}} % of heads: %{{y:.2f}}"
        times = [round(float(value), 4) if value > 0 else None for value in share * len(share)]
        data.append(
            common
            | {"x": heads.round(3).tolist(), "y": times, "hovertemplate": hover + " times even<extra></extra>"}
            | {"yaxis": "y2", "showlegend": False}
        )
        summed = (100 * share.cumsum()).round(3).tolist()
        data.append(
            common | {"x": heads.round(3).tolist(), "y": summed, "hovertemplate": hover + " % of score<extra></extra>"}
        )
    even = {"type": "scatter", "mode": "lines", "x": [0, 100], "y": [0, 100], "name": "even spread"}
    data.append(even | {"line": {"color": FAINT, "width": 1}, "hoverinfo": "skip"})
    return figure(
        data,
        560,
        xaxis={"title": {"text": "heads, best first, %"}, "range": [0, 100]},
        yaxis={"title": {"text": "share of score up to here, %"}, "range": [0, 101], "domain": [0, 0.47]},
        yaxis2={"title": {"text": "score, times even (log)"}, "type": "log", "domain": [0.55, 1], "dtick": 1},
        legend=legend(-0.14),
    )


def accuracy(result: Results, task: str) -> Chart:
    """Accuracy against slots kept, with 95 % intervals; the full cache as a line in a band."""
    data: list[dict[str, Any]] = []
    budgets = [int(budget) for budget in result.budgets()]
    ends = [0.9 * budgets[0], 1.12 * budgets[-1]] if budgets else [1.0, 2.0]
    if (full := result.row(task, "full", "")) is not None:
        value = float(full["value"])
        if full["ci_low"]:
            low, high = float(full["ci_low"]), float(full["ci_high"])
            band = {"type": "scatter", "mode": "lines", "x": ends + ends[::-1], "y": [low, low, high, high]}
            data.append(
                band
                | {"fill": "toself", "fillcolor": "var(--band)", "line": {"width": 0}}
                | {"showlegend": False, "hoverinfo": "skip"}
            )
        line = {"type": "scatter", "mode": "lines", "name": "full cache", "x": ends, "y": [value, value]}
        said = f"full cache: {value:.3f}{between(full)}<extra></extra>"
        data.append(line | {"line": {"color": INK, "width": 1.5}, "hovertemplate": said})
    metric, shares = "", all(0.0 <= float(row["value"]) <= 1.0 for row in result.evaluation if row["task"] == task)
    for number, method in enumerate(m for m in result.methods() if m != "full"):
        rows = [row for b in result.budgets() if (row := result.row(task, method, b)) is not None]
        if rows:
            metric = rows[0]["metric"].replace("_", " ")
            data.append(_with_intervals(method, rows, 1 + 0.012 * (number - 2)))
    ticks = {"tickvals": budgets, "ticktext": [str(b) for b in budgets]}
    return figure(
        data,
        440,
        xaxis={"title": {"text": "slots kept per KV head, mean (log)"}, "type": "log", "range": np.log10(ends).tolist()}
        | ticks,
        yaxis={"title": {"text": metric}} | ({"range": [-0.02, 1.03]} if shares else {}),
        legend=legend(),
    )


def between(row: Row) -> str:
    """A row's interval after its value, in words; empty where it has none."""
    return f" [{float(row['ci_low']):.3f}, {float(row['ci_high']):.3f}]" if row["ci_low"] else ""


def _with_intervals(method: str, rows: list[Row], shift: float) -> dict[str, Any]:
    """One method's line; shifted a little, so that intervals at one budget do not hide each other."""
    value = [float(row["value"]) for row in rows]
    said = [
        f"{method}, B = {row['budget']}: {float(row['value']):.3f}{between(row)}"
        f"<br>{float(row['kept_slots']):.1f} slots, {int(row['bytes']):,} bytes"
        for row in rows
    ]
    error: dict[str, Any] = {"visible": False}
    if (reach := bars(rows)) is not None:
        low, high = reach.round(6).tolist()
        error = {"array": high, "arrayminus": low, "symmetric": False, "thickness": 1.2, "width": 3}
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": method,
        "x": [round(float(row["kept_slots"]) * shift, 4) for row in rows],
        "y": value,
        "error_y": error,
        **style(method).for_plotly(),
        "text": said,
        "hovertemplate": "%{text}<extra></extra>",
    }
