"""The figures, as PNG bytes that are the same for the same numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from sparsemm.report.efficiency import latency
from sparsemm.report.looking import Looking
from sparsemm.report.picture import WIDTH, Figure, png
from sparsemm.report.results import Results, bars
from sparsemm.report.styles import style
from sparsemm.report.views import GRID, STRONGEST, THUMBNAIL, WORD, Views, head_views


def drawn(result: Results, pages: Sequence[Looking] | str) -> Iterator[tuple[str, bytes]]:
    """Name and PNG of every figure of one model."""
    yield f"heads-{result.key}", heat_map(result)
    for task in result.tasks():
        yield f"accuracy-{result.key}-{task}", accuracy(result, task)
    if result.profile:
        yield f"latency-{result.key}", latency(result.name, result.profile)
    if (views := head_views(pages, result.table)) is not None:
        yield f"looking-{result.key}", overlay(views)


def heat_map(result: Results) -> bytes:
    """Share of the visual score of every head: layers down, heads across."""
    share = 100 * result.table.normalised()
    figure = Figure(figsize=(WIDTH, 1.1 + min(0.3 * len(share), 8)))
    axes = figure.subplots()
    image = axes.imshow(share, cmap="magma", aspect="auto", vmin=0)
    axes.set(xlabel="query head", ylabel="layer", title=result.name)
    axes.set_xticks(range(0, share.shape[1], max(1, share.shape[1] // 16)))
    axes.set_yticks(range(0, share.shape[0], max(1, share.shape[0] // 16)))
    figure.colorbar(image, ax=axes, label="share of the score, %")
    return png(figure)


def share_curve(results: Sequence[Results]) -> bytes:
    """Cumulative share of the score over the heads, best first, one line per model."""
    figure = Figure(figsize=(WIDTH, 3.8))
    axes = figure.subplots()
    styles = ("-", "--", "-.", ":")
    for number, result in enumerate(results):
        share = np.sort(result.table.normalised().ravel())[::-1].cumsum()
        heads = 100 * np.arange(1, len(share) + 1) / len(share)
        axes.plot(heads, 100 * share, styles[number % 4], color=f"C{number}", label=result.name)
    axes.plot([0, 100], [0, 100], color="#999999", linewidth=1, label="even spread")
    axes.set(xlabel="heads, best first, %", ylabel="share of the score, %", xlim=(0, 100), ylim=(0, 101))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return png(figure)


def accuracy(result: Results, task: str) -> bytes:
    """Accuracy against slots and bytes kept, with 95 % intervals; the full cache as a line in a band."""
    figure = Figure(figsize=(WIDTH, 4.4))
    axes = figure.subplots()
    full = result.row(task, "full", "")
    if full is not None:
        axes.axhline(float(full["value"]), color=style("full").colour, linewidth=1, label="full cache")
        if full["ci_low"]:
            axes.axhspan(float(full["ci_low"]), float(full["ci_high"]), color=style("full").colour, alpha=0.08)
    metric, slot_bytes = "", 0.0
    for number, method in enumerate(m for m in result.methods() if m != "full"):
        rows = [row for b in result.budgets() if (row := result.row(task, method, b)) is not None]
        if not rows:
            continue
        metric = rows[0]["metric"].replace("_", " ")
        slot_bytes = float(rows[0]["bytes"]) / float(rows[0]["kept_slots"])
        value = [float(row["value"]) for row in rows]
        # Side by side, so that intervals at one budget do not hide each other.
        at = np.array([float(row["kept_slots"]) for row in rows]) * (1 + 0.012 * (number - 2))
        axes.errorbar(at, value, bars(rows), label=method, capsize=2, **style(method).for_matplotlib())
    axes.set_xscale("log", base=2)
    ticks = [int(b) for b in result.budgets()]
    axes.set_xticks(ticks, [str(b) for b in ticks])
    axes.minorticks_off()
    axes.set(xlabel="slots kept per KV head (mean, measured)", ylabel=metric)
    if all(0.0 <= float(row["value"]) <= 1.0 for row in result.evaluation if row["task"] == task):
        axes.set_ylim(-0.02, 1.02)
    axes.grid(alpha=0.3)
    if ticks:
        axes.set_xlim(0.9 * ticks[0], 1.12 * ticks[-1])  # also where one budget was run
    if slot_bytes and ticks:
        size = axes.twiny()
        size.set(xscale=axes.get_xscale(), xlim=axes.get_xlim(), xlabel="keys and values held, KiB")
        size.set_xticks(ticks, [f"{b * slot_bytes / 2**10:.3g}" for b in ticks])
        size.minorticks_off()
    axes.set_title(f"{result.name}, {task}", pad=10)
    axes.legend(fontsize=9, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False)
    return png(figure)


def overlay(views: Views) -> bytes:
    """Attention over a page, visual heads on the left and others on the right; the word about to be said outlined.

    The grid's tokens are drawn orange, the thumbnail's green.
    """
    from matplotlib.patches import Rectangle

    width, height = views.image.size
    rows = len(views.visual)  # two across: more cannot be read on a phone
    figure = Figure(figsize=(WIDTH, rows * (WIDTH / 2 * height / width + 0.7)))
    grid = figure.subplots(rows, 2, squeeze=False)
    for axes, view in zip(grid.T.ravel(), (*views.visual, *views.others), strict=True):
        axes.imshow(np.asarray(views.image.convert("L")), cmap="gray", vmin=0, vmax=255)
        for (x0, y0, x1, y1), weight, coarse in zip(view.rectangles - 0.5, view.attention, view.coarse, strict=True):
            colour, alpha = THUMBNAIL if coarse else GRID, STRONGEST * float(weight) / views.strongest
            axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, color=colour, alpha=alpha, linewidth=0))
        x0, y0, x1, y1 = views.box
        outline = Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, edgecolor=WORD, linewidth=2)
        axes.add_patch(outline)
        axes.set_title(f"{view.title}\n{view.said}", fontsize=9)
        axes.set_axis_off()
    figure.tight_layout()
    return png(figure)
