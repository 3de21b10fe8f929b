"""The chart of time and memory, as a plotly figure in plain JSON values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sparsemm.report.charts import Chart, figure, legend
from sparsemm.report.efficiency import Star, by_method
from sparsemm.report.results import Row
from sparsemm.report.styles import style

MIB = 2**20
# Axis -> what it shows, its unit, a row's value; from the bottom to the top.
PANELS: dict[str, tuple[str, str, Callable[[Row], float]]] = {
    "y": ("keys and values, MiB", "MiB held", lambda row: int(row["kept_bytes"]) / MIB),
    "y2": ("most memory, MiB", "MiB at most", lambda row: int(row["peak_bytes"]) / MIB),
    "y3": ("ms a token (median)", "ms a token", lambda row: float(row["decode_ms_per_token"])),
}
DOMAINS = ([0, 0.29], [0.355, 0.645], [0.71, 1])


def cost(rows: Sequence[Row], points: Sequence[Star] = ()) -> Chart:
    """Milliseconds a token, most memory and bytes held against prompt length.

    Dotted: the least time a token can take, from the table's roofline. Stars: the paper's points.
    """
    data: list[dict[str, Any]] = []
    for method, mine in by_method(rows).items():
        common = {"type": "scatter", "name": method, "legendgroup": method, "x": _lengths(mine)}
        for axis, (_, unit, value) in PANELS.items():
            data.append(
                common
                | style(method).for_plotly()
                | {"mode": "lines+markers", "yaxis": axis, "y": [round(value(row), 6) for row in mine]}
                | {
                    "showlegend": axis == "y",
                    "hovertemplate": f"{method}, %{{x}} tokens: %{{y:.4g}} {unit}<extra></extra>",
                }
            )
        least = {"color": style(method).page_colour, "dash": "1px,3px", "width": 1.2}
        data.append(
            common
            | {"mode": "lines", "yaxis": "y3", "y": [float(row["roofline_ms"]) for row in mine], "line": least}
            | {"showlegend": False, "hovertemplate": f"{method}: at least %{{y:.4g}} ms a token<extra></extra>"}
        )
    data += [_star(point) for point in points]
    lengths = sorted(set(_lengths(rows)))
    axes = {
        f"yaxis{axis[1:]}": {"title": {"text": title}, "rangemode": "tozero", "domain": domain}
        for (axis, (title, _, _)), domain in zip(PANELS.items(), DOMAINS, strict=True)
    }
    across = {"title": {"text": "prompt, tokens"}, "tickvals": lengths, "ticktext": [str(n) for n in lengths]}
    return figure(data, 700, xaxis=across, legend=legend(-0.12), **axes)


def _lengths(rows: Sequence[Row]) -> list[int]:
    return [int(row["prompt_length"]) for row in rows]


def _star(point: Star) -> dict[str, Any]:
    unit = "ms a token" if point.time else "MiB at most"
    return {
        "type": "scatter",
        "mode": "markers",
        "name": f"{point.method}, the paper",
        "showlegend": False,
        "x": [point.length],
        "y": [round(point.value, 4)],
        "yaxis": "y3" if point.time else "y2",
        "marker": {"symbol": "star", "size": 14, "color": style(point.method).page_colour},
        "hovertemplate": f"the paper, {point.method}, %{{x}} tokens: %{{y:.4g}} {unit}<extra></extra>",
    }
