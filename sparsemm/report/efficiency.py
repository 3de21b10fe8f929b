"""Time and memory against prompt length, with the roofline and, where they compare, the paper's points."""

from __future__ import annotations

import csv
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from sparsemm.params import Params
from sparsemm.report import page
from sparsemm.report.figures import COLOURS, WIDTH, method_style, png
from sparsemm.report.results import Row, read_profile

PAPER = Path(__file__).with_name("paper_efficiency.csv")
COLUMNS = "method B prompt prefill_ms compression_share decode_ms_per_token tokens_per_second peak_bytes".split()


def paper_points(shape: str, machine: dict[str, Any], rows: Sequence[Row]) -> list[Row]:
    """The paper's numbers for a 7B shape on a GPU, at lengths and budgets that were measured; else none."""
    if machine.get("device", platform.machine()) == platform.machine():
        return []
    with open(PAPER, newline="", encoding="utf-8") as handle:
        points = [row for row in csv.DictReader(handle) if row["shape"] == shape]
    measured = {(row["method"], row["budget"], row["prompt_length"]) for row in rows}
    return [p for p in points if (p["method"], p["budget"], p["prompt_length"]) in measured]


def figure(name: str, rows: Sequence[Row], points: Sequence[Row] = ()) -> bytes:
    """Milliseconds a token, most memory and bytes of keys and values, against prompt length.

    Dotted: the roofline, weights and kept keys and values over the bandwidth of a copy. Stars: the paper; its speed-up
    is drawn as this machine's full cache divided by it.
    """
    picture = Figure(figsize=(WIDTH, 8.6))
    time, peak, held = picture.subplots(3, 1, sharex=True)
    for number, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
        mine = sorted((r for r in rows if r["method"] == method), key=lambda r: int(r["prompt_length"]))
        lengths = [int(row["prompt_length"]) for row in mine]
        style = method_style(method, number) | {"markersize": 9 - 1.5 * (number % 4)}  # rings where methods coincide
        time.plot(lengths, [float(row["decode_ms_per_token"]) for row in mine], label=method, **style)
        bound = {"color": style["color"], "linestyle": ":", "linewidth": 1}
        time.plot(lengths, [float(row["roofline_ms"]) for row in mine], **bound)
        peak.plot(lengths, [int(row["peak_bytes"]) / 2**20 for row in mine], **style)
        held.plot(lengths, [int(row["kept_bytes"]) / 2**20 for row in mine], label=method, **style)
    full = {row["prompt_length"]: float(row["decode_ms_per_token"]) for row in rows if row["method"] == "transformers"}
    for point in points:
        speedup = point["quantity"] == "decode_speedup"
        value = float(point["value"])
        height = full[point["prompt_length"]] / value if speedup else value * 1e9 / 2**20
        star = {"marker": "*", "markersize": 13, "color": COLOURS.get(point["method"], "#000000"), "linestyle": ""}
        (time if speedup else peak).plot([int(point["prompt_length"])], [height], **star)
    time.set(ylabel="ms a token (median)", ylim=(0, None), title=name)
    peak.set(ylabel="most memory, MiB", ylim=(0, None))
    held.set(xlabel="prompt, tokens", ylabel="keys and values, MiB", ylim=(0, None))
    held.set_xticks(sorted({int(row["prompt_length"]) for row in rows}))
    held.tick_params(axis="x", rotation=45)
    for axes in (time, peak, held):
        axes.grid(alpha=0.3)
    held.legend(fontsize=9, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.35), frameon=False)
    picture.tight_layout()
    return png(picture)


def shapes(params: Params, root: Path, images: dict[str, bytes]) -> str:
    """The section of the 7B configurations in `profile.shapes` that were timed; nothing where none was.

    Raises:
        DataError: if a table is not what its stage writes.
    """
    parts = []
    for name in params.profile.shapes:
        rows, machine = read_profile(root / "artifacts" / "profile" / "shapes", name)
        if not rows:
            continue
        image = images[f"efficiency-{name}"] = figure(name, rows, paper_points(name, machine, rows))
        alt = f"Three line charts against prompt length for {name}: milliseconds a token, most memory, bytes held."
        caption = (
            f"{name} with random weights in bf16 on {machine.get('device', 'an unknown device')}, medians. Dotted: "
            "the least a step can take, bytes of weights and kept keys and values over the bandwidth of a copy. "
            "Stars: the paper (arXiv 2506.05344), where its length and budget were measured on a GPU; its hardware "
            "may differ."
        )
        cells = [
            [row["method"], row["budget"] or "all", *(row[c] for c in ("prompt_length", *COLUMNS[3:]))] for row in rows
        ]
        listed = page.table([column.replace("_", " ") for column in COLUMNS], cells, f"{name}: time and bytes")
        parts += [page.heading(name), page.figure(image, alt, caption), page.details("All numbers", listed)]
    return page.section("efficiency", "Efficiency at the sizes of 7B models", *parts) if parts else ""
