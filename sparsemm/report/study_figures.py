"""One figure per study and model: a panel per task and condition, intervals on every point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes

from sparsemm.report.picture import WIDTH, Figure, png
from sparsemm.report.results import Row, bars
from sparsemm.report.styles import Style, told_apart

MOST_PANELS = 8
LEVELS = {"masking": "share of heads switched off", "rho": "rho", "cost": "prompt length, tokens"}


class Panel(NamedTuple):
    """What is drawn together: a task under a condition.

    Attributes:
        rows: each arm once.
        level: what the task's panels are measured by, if that stands alone.
    """

    task: str
    condition: str
    rows: list[Row]
    level: Row | None


def panels(rows: Sequence[Row]) -> list[Panel]:
    """The panels of a study's rows of one model; of very many the first `MOST_PANELS`."""
    found: dict[tuple[str, str], dict[tuple[str, ...], Row]] = {}
    for row in rows:
        arm = tuple(row[column] for column in ("setting", "level", "budget"))
        found.setdefault((row["task"], row["condition"]), {})[arm] = row
    grouped = {panel: list(arms.values()) for panel, arms in found.items()}
    # An arm alone in its panel is what the task's other panels are measured by, where there are others.
    tasks = [task for task, _ in grouped]
    lonely = {
        task: mine[0]
        for (task, condition), mine in grouped.items()
        if not condition and len(mine) == 1 and tasks.count(task) > 1
    }
    kept = [(at, mine) for at, mine in grouped.items() if at[1] or at[0] not in lonely]
    return [Panel(*at, mine, lonely.get(at[0])) for at, mine in kept[:MOST_PANELS]]


def position(row: Row) -> float | None:
    """Where a row stands: at its level, else at its budget, else nowhere."""
    text = row["level"] or row["budget"]
    return float(text) if text else None


def levels(rows: Sequence[Row]) -> bool:
    """Whether a panel's axis is the level, not the budget."""
    return any(row["level"] for row in rows)


def across_name(rows: Sequence[Row]) -> str:
    """Name of the axis across: what the level is, or the budget."""
    return LEVELS.get(rows[0]["study"], "level") if levels(rows) else "B, slots per KV head (log)"


def value_name(rows: Sequence[Row]) -> str:
    """Name of the axis of the values: their metric, which holds the unit where there is one."""
    return rows[0]["metric"].replace("_", " ")


def drawn(name: str, rows: Sequence[Row]) -> bytes:
    """PNG of a study's rows of one model."""
    return png(figure_of(name, rows))


def figure_of(name: str, rows: Sequence[Row]) -> Figure:
    """What `drawn` makes a PNG of."""
    shown = panels(rows)
    figure = Figure(figsize=(WIDTH, 2.7 * ((len(shown) + 1) // 2) + 0.6))
    grid = figure.subplots((len(shown) + 1) // 2, 2, squeeze=False).ravel()
    for axes in grid[len(shown) :]:
        axes.set_axis_off()
    styles = told_apart(row["setting"] for row in rows)
    for axes, panel in zip(grid, shown, strict=False):
        (_lines if any(position(row) is not None for row in panel.rows) else _points)(axes, panel.rows, styles)
        if panel.level is not None:
            _level(axes, panel.level)
        if all(0.0 <= float(row["value"]) <= 1.0 for row in panel.rows):
            axes.set_ylim(-0.03, 1.03)  # panels compare
        axes.set_title(f"{panel.task}\n{panel.condition}" if panel.condition else panel.task, fontsize=9)
        axes.set_ylabel(value_name(panel.rows), fontsize=8)
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=8)
    handles = {h: label for axes in grid for h, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    unique = {label: handle for handle, label in handles.items()}
    figure.suptitle(name, fontsize=10)
    figure.tight_layout()
    if unique:
        figure.legend(unique.values(), unique.keys(), fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, 0))
    return figure


def _look(given: Style) -> dict[str, Any]:
    return given.for_matplotlib() | {"markersize": 4, "capsize": 2, "linewidth": 1}


def _lines(axes: Axes, rows: Sequence[Row], styles: Mapping[str, Style]) -> None:
    by_level = levels(rows)
    for number, setting in enumerate(styles):
        own = [row for row in rows if row["setting"] == setting]
        mine = sorted((row for row in own if position(row) is not None), key=lambda row: position(row) or 0.0)
        if not mine:
            if own:
                _level(axes, own[0])
            continue
        at, value = [float(r["level"] or r["budget"]) for r in mine], [float(r["value"]) for r in mine]
        if not by_level:  # side by side, so that equal points do not hide each other
            at = [x * (1 + 0.012 * (number - 2)) for x in at]
        axes.errorbar(at, value, bars(mine), label=setting, **_look(styles[setting]))
    axes.set_xlabel(across_name(rows), fontsize=8)
    if not by_level:
        ticks = sorted({int(row["budget"]) for row in rows if row["budget"]})
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [str(b) for b in ticks])
        axes.set_xlim(0.9 * ticks[0], 1.12 * ticks[-1])  # also where one budget was run
        axes.minorticks_off()


def _level(axes: Axes, row: Row) -> None:
    axes.axhline(float(row["value"]), color="#000000", linewidth=1, linestyle=":", label=row["setting"])


def _points(axes: Axes, rows: Sequence[Row], styles: Mapping[str, Style]) -> None:
    for at, row in enumerate(rows):
        look = _look(styles[row["setting"]])
        axes.errorbar([at], [float(row["value"])], bars([row]), label=row["setting"], **look)
    axes.set_xticks([])
    axes.margins(x=0.2)
