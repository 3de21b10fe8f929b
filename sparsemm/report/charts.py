"""Builds the charts as JSON values that charts.js draws with plotly, and as rows that `dvc plots` draws.

A chart is a grid of panels. Every panel can be read without a tooltip: all differences are on an axis or in the legend.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from textwrap import wrap
from typing import Any, NamedTuple

import numpy as np

from sparsemm.evaluate.rows import OVERALL
from sparsemm.recipes import Scenario
from sparsemm.report.results import Heads, Model, PaperPoint, StudyResults, Timing
from sparsemm.report.style import FAINT, Style, method_label, method_style, model_style, setting_styles
from sparsemm.statistics import Estimate
from sparsemm.studies import Rows, StudyRow

MIB = 2**20
WIDEST = 20  # characters in a line of a label
LINE = 16  # pixels of a line of text, at most
MOST_PANELS = 8


class Point(NamedTuple):
    """One mark: its position (a tick's name, or a number), and its value with its interval."""

    at: str | float
    estimate: Estimate


@dataclass(frozen=True)
class Series:
    """The points of one method or model."""

    name: str  # name in the legend
    style: Style  # style of the marks and of the line between them
    points: list[Point]  # points in the order in which they are joined
    level: bool = False  # whether the single point is drawn as a line across the panel, with a band for its interval
    marks: bool = True  # whether points are marked; otherwise the series is a bare line
    joined: bool = True  # whether a line joins the points


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    title: str
    across: str  # name of the horizontal axis
    up: str  # name of the vertical axis
    series: list[Series]
    # evenly spaced names on the horizontal axis; empty if it is a number line
    ticks: list[str] = field(default_factory=list)
    lying: bool = False  # whether the ticks are on the vertical axis instead, and values on the horizontal one
    zero: bool = False  # whether a line marks zero
    limits: tuple[float, float] | None = None  # range of the values, if it is known


@dataclass(frozen=True)
class Chart:
    """Panels in a grid."""

    panels: list[Panel]  # at least one panel
    columns: int = 2  # number of columns on a wide screen; on a phone there is one
    row: int = 300  # height of a panel in pixels

    def spec(self) -> dict[str, Any]:
        """Returns JSON values for charts.js."""
        return {"panels": [_panel(panel) for panel in self.panels], "columns": self.columns, "row": self.row}

    def legend(self) -> dict[str, Style]:
        """Returns name and style of every series."""
        return {series.name: series.style for panel in self.panels for series in panel.series if series.name}

    def rows(self) -> list[dict[str, Any]]:
        """Returns every point as a row of the table that `dvc plots` draws."""
        rows = []
        for panel in self.panels:
            for series in panel.series:
                for at, estimate in series.points:
                    plain = at.replace("<br>", ", ") if isinstance(at, str) else at
                    values = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
                    numbers = {name: "" if value is None else round(value, 6) for name, value in values.items()}
                    rows.append({"panel": panel.title, "series": series.name, "at": plain} | numbers)
        return rows


def _panel(panel: Panel) -> dict[str, Any]:
    ticks = [*dict.fromkeys(panel.ticks)]
    names = {"tickvals": list(range(len(ticks))), "ticktext": [_wrapped(tick) for tick in ticks]}
    places: dict[str, Any] = {"title": {"text": panel.across if not panel.lying else ""}}
    values: dict[str, Any] = {"title": {"text": panel.up if not panel.lying else panel.across}}
    if ticks:
        places |= names | {"range": [-0.5, len(ticks) - 0.5], "showgrid": False}
    if panel.lying:
        places["range"] = [len(ticks) - 0.5, -0.5]
    if panel.limits:
        values["range"] = list(panel.limits)
    elif panel.zero:
        values["rangemode"] = "tozero"
    marked = [series for series in panel.series if not series.level]
    step = min(0.09, 0.5 / max(len(marked), 1))
    traces = []
    for series in panel.series:
        shift = (marked.index(series) - (len(marked) - 1) / 2) * step if ticks and not series.level else 0.0
        traces += _level(series, len(ticks)) if series.level else [_trace(series, ticks, shift, panel.lying)]
    x, y = (values, places) if panel.lying else (places, values)
    zero = panel.zero and ("x" if panel.lying else "y")
    return {"title": panel.title, "x": x, "y": y, "traces": traces, "zero": zero}


def _trace(series: Series, ticks: list[str], shift: float, lying: bool) -> dict[str, Any]:
    places = [round(ticks.index(str(p.at)) + shift, 4) if ticks else p.at for p in series.points]
    estimates = [point.estimate for point in series.points]
    values = [round(estimate.value, 6) for estimate in estimates]
    trace: dict[str, Any] = {"type": "scatter", "name": series.name, **series.style.trace()}
    trace["mode"] = ("lines+markers" if series.joined else "markers") if series.marks else "lines"
    trace |= {"x": values, "y": places} if lying else {"x": places, "y": values}
    trace["text"] = [f"{series.name}, {point.at}: {point.estimate.text()}" for point in series.points]
    trace["hovertemplate"] = "%{text}<extra></extra>"
    if all(estimate.low is not None for estimate in estimates) and estimates:
        reach = [(e.high - e.value, e.value - e.low) for e in estimates]  # type: ignore[operator]
        up, down = ([round(max(end, 0.0), 6) for end in ends] for ends in zip(*reach, strict=True))
        error = {"array": up, "arrayminus": down, "symmetric": False, "thickness": 1.3, "width": 0 if lying else 3}
        trace["error_x" if lying else "error_y"] = error
    return trace


def _level(series: Series, ticks: int) -> list[dict[str, Any]]:
    """Returns a line across evenly spaced ticks, with a band if it has an interval."""
    ((_, estimate),) = series.points
    ends = [-0.5, ticks - 0.5]
    line = {"type": "scatter", "mode": "lines", "x": ends, "y": [estimate.value] * 2, "name": series.name}
    text = f"{series.name}: {estimate.text()}"
    traces = [line | {"line": {"color": series.style.colour, "width": 1.5}, "hovertemplate": f"{text}<extra></extra>"}]
    if estimate.low is not None and estimate.high is not None:
        corners = [estimate.low] * 2 + [estimate.high] * 2
        band = {"type": "scatter", "mode": "lines", "x": ends + ends[::-1], "y": corners, "hoverinfo": "skip"}
        traces.insert(0, band | {"fill": "toself", "fillcolor": "var(--band)", "line": {"width": 0}})
    return traces


def _wrapped(label: str) -> str:
    return "<br>".join(line for part in label.split("<br>") for line in wrap(part, WIDEST, break_long_words=False))


def accuracy(model: Model) -> Chart:
    """Draws accuracy against the slots kept, a panel per task, with the full cache as a line in a band."""
    panels = []
    for task in model.tasks:
        full, series = model.row(task, "full"), []
        slots = full.kept_slots if full else None
        ticks = {budget: f"{budget}<br>{budget / slots:.0%}" if slots else str(budget) for budget in model.budgets}
        if full is not None:
            series.append(Series("full", method_style("full"), [Point("", full.accuracy)], level=True))
        for method in model.methods:
            points = [Point(ticks[row.budget], row.accuracy) for row in model.rows(task, method) if row.budget]
            if points:
                series.append(Series(method_label(method), method_style(method), points))
        rows = [row for row in model.accuracy if row.task == task]
        shares = all(0.0 <= row.value <= 1.0 for row in rows)
        up = rows[0].metric.replace("_", " ")
        across = "slots per KV head, and share of the prompt"
        limits = (-0.02, 1.03) if shares else None
        panels.append(Panel(task, across, up, series, list(ticks.values()), limits=limits))
    return Chart(panels, row=340)


def score_curves(models: Sequence[Model]) -> Chart:
    """Draws the share of the score that the best heads hold together, and every head's multiple of an even share."""
    together: list[Series] = []
    single: list[Series] = []
    for model in models:
        shares = [share for *_, share in model.heads.ranked]
        percent = (100 * np.arange(1, len(shares) + 1) / len(shares)).round(3).tolist()
        style, total = model_style(model.number), 100 * np.cumsum(shares)
        for points, values in ((together, total), (single, np.array(shares) * len(shares))):
            marks = [Point(x, Estimate(round(float(y), 4))) for x, y in zip(percent, values, strict=True)]
            points.append(Series(model.label, style, marks, marks=False))
    ends = [Point(0, Estimate(0)), Point(100, Estimate(100))]
    even = Series("even spread", Style(FAINT, "circle", "–"), ends, marks=False)
    across = "heads, best first, %"
    summed = Panel("Share of the score up to here", across, "%", [*together, even], limits=(0, 101))
    return Chart([summed, Panel("Score of every head", across, "times an even share", single)])


def heat_map(heads: Heads, title: str, most: float | None = None) -> dict[str, Any]:
    """Draws every head's share of the score in percent, layers down and heads across; colours end at `most`."""
    share = 100 * heads.shares
    rank = np.empty(share.size, dtype=np.int64)
    rank[np.argsort(-share.ravel(), kind="stable")] = np.arange(1, share.size + 1)
    trace = {
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
    x, y = (
        {"title": {"text": name}, "dtick": max(1, -(-count // 8)), "showgrid": False}
        for name, count in (("query head", share.shape[1]), ("layer", share.shape[0]))
    )
    panel = {"title": title, "x": x, "y": y | {"autorange": "reversed"}, "traces": [trace], "zero": False}
    return {"panels": [panel], "columns": 1, "row": 120 + min(24 * len(share), 560)}


def cost(timings: Sequence[Timing], points: Sequence[PaperPoint] = ()) -> Chart:
    """Draws milliseconds per token, peak memory and bytes held against prompt length.

    Dotted lines are the least time that a token can take; stars are the paper's points.
    """
    methods = dict.fromkeys(row.method for row in timings)
    timings = sorted(timings, key=lambda row: row.prompt_length)
    full = {row.prompt_length: row.decode_ms_per_token for row in timings if row.method == "transformers"}
    latency, peak = "ms per token", "peak memory, MiB"
    stars = {latency: [], peak: []}  # type: dict[str, list[Series]]
    for point in points:
        memory = point.quantity == "peak_gb"
        if not memory and point.prompt_length not in full:
            continue
        # The paper reports a speed-up, which divides the time of this machine's full cache.
        value = point.value * 1e9 / MIB if memory else full[point.prompt_length] / point.value
        style = Style(method_style(point.method).colour, "star", "★")
        series = Series("the paper", style, [Point(point.prompt_length, Estimate(value))], joined=False)
        stars[peak if memory else latency].append(series)

    def panel(title: str, value: Callable[[Timing], float], *more: Series) -> Panel:
        series = []
        for method in methods:
            rows = [row for row in timings if row.method == method]
            marks = [Point(row.prompt_length, Estimate(round(value(row), 6))) for row in rows]
            series.append(Series(method_label(method), method_style(method), marks))
        return Panel(title, "prompt, tokens", title, [*series, *more, *stars.get(title, [])])

    def least(method: str) -> Series:
        style = Style(method_style(method).colour, "circle", "·", "1px,3px")
        rows = [row for row in timings if row.method == method]
        return Series("", style, [Point(row.prompt_length, Estimate(row.roofline_ms)) for row in rows], marks=False)

    return Chart(
        [
            panel(latency, lambda row: row.decode_ms_per_token, *map(least, methods)),
            panel(peak, lambda row: row.peak_bytes / MIB),
            panel("keys and values, MiB", lambda row: row.kept_bytes / MIB),
        ],
        columns=3,
    )


def recipes(models: Sequence[Model]) -> Chart | None:
    """Draws the winners of the searches minus other methods, on pages that no search saw; None without a recipe.

    A panel per scenario, a mark per model: the difference of the mean accuracy over all tasks and budgets.
    """
    panels: dict[Scenario, list[Series]] = {}
    for model in models:
        for scenario, choice in model.recipe.scenarios.items() if model.recipe else ():
            points = [
                Point(method_label(row.against), row.difference)
                for row in choice.evidence
                if (row.method, row.task, row.budget) == (choice.winner, OVERALL, None)
            ]
            if points:
                series = Series(model.label, model_style(model.number), points, joined=False)
                panels.setdefault(scenario, []).append(series)
    drawn = [
        Panel(scenario, "other method", "difference", series, [str(p.at) for s in series for p in s.points], zero=True)
        for scenario, series in panels.items()
    ]
    return Chart(drawn) if drawn else None


def differences(result: StudyResults, models: Iterable[Model]) -> Chart | None:
    """Draws a study's headline differences with their intervals, in one colour per model; None if there are none.

    Levels or budgets are on the horizontal axis. If there are more comparisons than these, those are on the vertical
    axis instead.
    """
    numbers = {model.key: model for model in models}
    rows = [
        row
        for key in numbers
        for row in result.study.drawn(result.rows.get(key, []))
        if row.difference is not None and result.study.headline(row)
    ]
    if not rows:
        return None
    compare = _names(rows)
    places = [_place(row) for row in rows]
    lying = len(set(map(compare, rows))) > len(set(places))
    name: Callable[[StudyRow], str] = compare if lying else _place
    titles = {_title(row, compare(row), lying, len(set(places)) > 1): None for row in rows}
    panels = []
    for title in titles:
        panel_rows = [row for row in rows if _title(row, compare(row), lying, len(set(places)) > 1) == title]
        ticks = list(dict.fromkeys(name(row) for row in panel_rows))
        ticks = ticks if lying else sorted(ticks, key=_number)
        series = []
        for key, model in numbers.items():
            points = [Point(name(row), row.difference) for row in panel_rows if row.model == key and row.difference]
            if points:
                points.sort(key=lambda point: ticks.index(str(point.at)))
                series.append(Series(model.label, model_style(model.number), points, joined=not lying))
        across = "difference" if lying else _level_name(result, panel_rows)
        panels.append(Panel(title, across, "difference", series, ticks, lying=lying, zero=True))
    panels = panels[:MOST_PANELS]
    height = max(_height(panel) for panel in panels) if lying else 180
    return Chart(panels, columns=min(len(panels), 2), row=100 + max(height, 90))


def study_values(result: StudyResults, rows: Rows) -> Chart:
    """Draws a study's values of one model: a panel per task and condition, a line or a mark per setting."""
    styles, panels = setting_styles(row.setting for row in rows), []
    for (task, condition), panel_rows in _panels(rows).items():
        alone = _alone(rows, task) if condition else None
        places = sorted({place for row in panel_rows if (place := _place(row))}, key=_number)
        up = panel_rows[0].metric.replace("_", " ")
        limits = (-0.03, 1.03) if all(0.0 <= row.value <= 1.0 for row in panel_rows) else None
        title = f"{task}, {condition}" if condition else task
        by_setting: dict[str, list[StudyRow]] = {}
        for row in panel_rows:
            by_setting.setdefault(row.setting, []).append(row)
        if len(places) < 2:  # a line needs more than one place
            marks = [(row.setting, row.estimate) for row in [*panel_rows, *([alone] if alone else [])]]
            names = list(by_setting) + ([alone.setting] if alone else [])
            series = [
                Series(method_label(name), styles[name], [Point(method_label(name), estimate)], joined=False)
                for name, estimate in marks
            ]
            ticks = [method_label(name) for name in names]
            panels.append(Panel(title, up, "", series, ticks, lying=True, limits=limits))
            continue
        series = []
        for name, own in by_setting.items():
            placed = [Point(_place(row), row.estimate) for row in own if _place(row)]
            placed.sort(key=lambda point: _number(point.at))
            points = placed or [Point("", own[0].estimate)]
            series.append(Series(method_label(name), styles[name], points, level=not placed))
        if alone is not None:
            series.append(Series(alone.setting, styles[alone.setting], [Point("", alone.estimate)], level=True))
        panels.append(Panel(title, _level_name(result, panel_rows), up, series, places, limits=limits))
    columns = 3 if len(panels) > 4 else min(len(panels), 2)
    height = max((_height(panel) for panel in panels if panel.lying), default=0)
    return Chart(panels[:MOST_PANELS], columns=columns, row=max(280, 100 + height))


def _height(panel: Panel) -> int:
    """Pixels that a panel with ticks on its vertical axis needs, so that neither marks nor labels meet."""
    marks = Counter(str(point.at) for series in panel.series for point in series.points)
    lines = max(_wrapped(tick).count("<br>") + 1 for tick in panel.ticks)
    return len(set(panel.ticks)) * max(14 + 9 * max(marks.values()), 4 + LINE * lines)


def _panels(rows: Rows) -> dict[tuple[str, str], list[StudyRow]]:
    """Groups rows into panels with each arm once. A lone arm (see `_alone`) is drawn in the task's other panels."""
    arms: dict[tuple[str, str], dict[tuple[Any, ...], StudyRow]] = {}
    for row in rows:
        arms.setdefault((row.task, row.condition), {})[row.setting, row.level, row.budget] = row
    return {k: list(rs.values()) for k, rs in arms.items() if k[1] or _alone(rows, k[0]) not in rs.values()}


def _alone(rows: Rows, task: str) -> StudyRow | None:
    """Returns the baseline of a task's panels: the only arm without a condition, if others have one."""
    own = [row for row in rows if row.task == task]
    bare = {(row.setting, row.level, row.budget): row for row in own if not row.condition}
    return next(iter(bare.values())) if len(bare) == 1 and any(row.condition for row in own) else None


def _place(row: StudyRow) -> str:
    place = row.level if row.level is not None else row.budget
    return "" if place is None else f"{place:g}"


def _number(place: Any) -> float:
    return float(place or 0)


def _level_name(result: StudyResults, rows: Rows) -> str:
    return result.study.level if any(row.level is not None for row in rows) else "B, slots per KV head"


def _names(rows: Rows) -> Callable[[StudyRow], str]:
    """Returns a function that names a comparison by those of condition, setting and counterpart that vary."""
    parts: Mapping[str, Callable[[StudyRow], str]] = {
        "condition": lambda row: row.condition,
        "setting": lambda row: method_label(row.setting),
        "against": lambda row: f"against {method_label(row.against or '')}",
    }
    varied = [part for part in parts.values() if len({part(row) for row in rows}) > 1]
    return lambda row: (
        ", ".join(text for part in varied if (text := part(row)))
        or f"{method_label(row.setting)} against {method_label(row.against or '')}"
    )


def _title(row: StudyRow, comparison: str, lying: bool, several: bool) -> str:
    if not lying:
        return f"{row.task}: {comparison}"
    return f"{row.task}, {_place(row)}" if several and _place(row) else row.task
