"""One figure per study and model: a panel per task and condition, intervals on every point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparsemm.report.figures import WIDTH, png
from sparsemm.report.results import Row

# Okabe and Ito's palette, by method where a setting is one.
COLOURS = {"full": "#000000", "sparsemm": "#D55E00", "snapkv": "#0072B2", "pyramidkv": "#009E73"}
COLOURS |= {"adakv": "#CC79A7", "random": "#999999"}
OTHERS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999", "#000000")
MARKERS = "os^Dvx*P"
MOST_PANELS = 8


def panels(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """(task, condition) -> its rows, each arm once."""
    found: dict[tuple[str, str], dict[tuple[str, ...], Row]] = {}
    for row in rows:
        arm = tuple(row[column] for column in ("setting", "level", "budget"))
        found.setdefault((row["task"], row["condition"]), {})[arm] = row
    return {panel: list(arms.values()) for panel, arms in found.items()}


def drawn(name: str, rows: Sequence[Row]) -> bytes:
    """PNG of a study's rows of one model; of very many panels the first `MOST_PANELS`."""
    found = panels(rows)
    # An arm alone in its panel is what the task's other panels are measured by.
    lonely = {task: mine[0] for (task, condition), mine in found.items() if not condition and len(mine) == 1}
    shown = [one for one in found.items() if one[0] not in {(task, "") for task in lonely}][:MOST_PANELS]
    figure = Figure(figsize=(WIDTH, 2.7 * ((len(shown) + 1) // 2) + 0.6))
    grid = figure.subplots((len(shown) + 1) // 2, 2, squeeze=False).ravel()
    for axes in grid[len(shown) :]:
        axes.set_axis_off()
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    for axes, ((task, condition), mine) in zip(grid, shown, strict=False):
        (_lines if any(_at(row) is not None for row in mine) else _points)(axes, mine, settings)
        if task in lonely:
            _level(axes, lonely[task])
        if all(0.0 <= float(row["value"]) <= 1.0 for row in mine):
            axes.set_ylim(-0.03, 1.03)  # panels compare
        axes.set_title(f"{task}\n{condition}" if condition else task, fontsize=9)
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=8)
    handles = {h: label for axes in grid for h, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    unique = {label: handle for handle, label in handles.items()}
    figure.suptitle(name, fontsize=10)
    figure.tight_layout()
    if unique:
        figure.legend(unique.values(), unique.keys(), fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, 0))
    return png(figure)


def _at(row: Row) -> float | None:
    text = row["level"] or row["budget"]
    return float(text) if text else None


def _style(setting: str, settings: Sequence[str]) -> dict[str, Any]:
    number = settings.index(setting)
    return {
        "color": COLOURS.get(setting, OTHERS[number % len(OTHERS)]),
        "marker": MARKERS[number % len(MARKERS)],
        "markersize": 4,
        "capsize": 2,
        "linewidth": 1,
    }


def _error(rows: Sequence[Row]) -> np.ndarray | None:
    if not all(row["ci_low"] for row in rows):
        return None
    value, low, high = (np.array([float(row[c]) for row in rows]) for c in ("value", "ci_low", "ci_high"))
    return np.clip(np.stack([value - low, high - value]), 0, None)


def _lines(axes: Axes, rows: Sequence[Row], settings: Sequence[str]) -> None:
    levels = any(row["level"] for row in rows)
    for setting in dict.fromkeys(row["setting"] for row in rows):
        mine = sorted((r for r in rows if r["setting"] == setting and _at(r) is not None), key=lambda r: _at(r) or 0.0)
        if not mine:
            _level(axes, next(r for r in rows if r["setting"] == setting))
            continue
        at, value = [float(r["level"] or r["budget"]) for r in mine], [float(r["value"]) for r in mine]
        if not levels:  # side by side, so that equal points do not hide each other
            at = [x * (1 + 0.012 * (settings.index(setting) - 2)) for x in at]
        axes.errorbar(at, value, _error(mine), label=setting, **_style(setting, settings))
    axes.set_xlabel("level" if levels else "B", fontsize=8)
    if not levels:
        ticks = sorted({int(row["budget"]) for row in rows if row["budget"]})
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [str(b) for b in ticks])
        axes.minorticks_off()


def _level(axes: Axes, row: Row) -> None:
    axes.axhline(float(row["value"]), color=COLOURS["full"], linewidth=1, linestyle=":", label=row["setting"])


def _points(axes: Axes, rows: Sequence[Row], settings: Sequence[str]) -> None:
    for at, row in enumerate(rows):
        axes.errorbar(
            [at], [float(row["value"])], _error([row]), label=row["setting"], **_style(row["setting"], settings)
        )
    axes.set_xticks([])
    axes.margins(x=0.2)
