"""A study's charts as plotly figures in plain JSON values: one per task and condition, intervals on every point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sparsemm.report.charts import Chart, between, figure, legend
from sparsemm.report.results import Row, bars
from sparsemm.report.study_figures import across_name, levels, panels, position, value_name
from sparsemm.report.styles import INK, Style, told_apart


def charts(rows: Sequence[Row]) -> dict[str, Chart]:
    """What a study found of one model: name of a panel -> its chart."""
    styles = told_apart(row["setting"] for row in rows)
    made = {}
    for panel in panels(rows):
        name = f"{panel.task}, {panel.condition}" if panel.condition else panel.task
        places = {place for row in panel.rows if (place := position(row)) is not None}
        draw = _lines if len(places) > 1 else _points  # a line needs more than one place
        made[name] = draw(panel.rows, panel.level, styles)
    return made


def _said(row: Row) -> str:
    at = " ".join(f"{name} {row[column]}" for name, column in (("level", "level"), ("B =", "budget")) if row[column])
    return f"{row['setting']}{', ' + at if at else ''}: {float(row['value']):.3f}{between(row)}"


def _trace(setting: str, rows: Sequence[Row], given: Style) -> dict[str, Any]:
    said = {"text": [_said(row) for row in rows], "hovertemplate": "%{text}<extra></extra>"}
    return {"type": "scatter", "name": setting, **given.for_plotly(), **said}


def _error(rows: Sequence[Row]) -> dict[str, Any]:
    ends = bars(rows)
    if ends is None:
        return {"visible": False}
    low, high = ends.round(6).tolist()
    return {"array": high, "arrayminus": low, "symmetric": False, "thickness": 1.2, "width": 3}


def _values(rows: Sequence[Row]) -> dict[str, Any]:
    axis: dict[str, Any] = {"title": {"text": value_name(rows)}}
    return axis | ({"range": [-0.03, 1.03]} if all(0.0 <= float(row["value"]) <= 1.0 for row in rows) else {})


def _lines(rows: Sequence[Row], level: Row | None, styles: Mapping[str, Style]) -> Chart:
    """Against the level, or the budget on a logarithmic axis; what has neither is a line across."""
    by_level = levels(rows)
    at = sorted({place for row in rows if (place := position(row)) is not None})
    ends = [0.9 * at[0], 1.1 * at[-1]] if not by_level else [at[0], at[-1]]
    data = []
    for number, (setting, given) in enumerate(styles.items()):
        mine = [row for row in rows if row["setting"] == setting]
        placed = sorted((position(row) or 0.0, n) for n, row in enumerate(mine) if position(row) is not None)
        if placed:
            sorted_rows = [mine[n] for _, n in placed]
            shift = 1.0 if by_level else 1 + 0.012 * (number - 2)  # equal points do not hide each other
            xs, ys = [round(place * shift, 4) for place, _ in placed], [float(row["value"]) for row in sorted_rows]
            line = {"mode": "lines+markers", "x": xs, "y": ys, "error_y": _error(sorted_rows)}
            data.append(_trace(setting, sorted_rows, given) | line)
        elif mine:
            data.append(_across(mine[0], ends))
    if level is not None:
        data.append(_across(level, ends))
    ticks = {"tickvals": at, "ticktext": [f"{place:g}" for place in at]}
    across: dict[str, Any] = {"title": {"text": across_name(rows)}, **ticks}
    if not by_level:
        across |= {"type": "log", "range": np.log10(ends).tolist()}
    return figure(data, 400, xaxis=across, yaxis=_values(rows), legend=legend())


def _across(row: Row, ends: list[float]) -> dict[str, Any]:
    value = float(row["value"])
    line = {"type": "scatter", "mode": "lines", "name": row["setting"], "x": ends, "y": [value, value]}
    return line | {"line": {"color": INK, "width": 1.5, "dash": "dot"}, "hovertemplate": f"{_said(row)}<extra></extra>"}


def _points(rows: Sequence[Row], level: Row | None, styles: Mapping[str, Style]) -> Chart:
    """One line of text per setting, its value beside it."""
    shown = [*rows, *([level] if level is not None else [])]
    data = [
        _trace(row["setting"], [row], styles[row["setting"]])
        | {"mode": "markers", "x": [float(row["value"])], "y": [row["setting"]], "error_x": _error([row])}
        for row in shown
    ]
    return figure(
        data,
        110 + 32 * len(shown),
        xaxis=_values(rows),
        yaxis={"type": "category", "autorange": "reversed", "showgrid": False},
        showlegend=False,
    )
