"""Time and memory against prompt length, with the roofline and, where they compare, the paper's points."""

from __future__ import annotations

import csv
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sparsemm.params import Params
from sparsemm.report.picture import WIDTH, Figure, png
from sparsemm.report.results import Row, read_profile
from sparsemm.report.styles import style

PAPER = Path(__file__).with_name("paper_efficiency.csv")


class Timed(NamedTuple):
    """A configuration of a 7B model that was timed: rows of its table, and the machine they are of."""

    name: str
    rows: list[Row]
    machine: dict[str, Any]


class Star(NamedTuple):
    """One of the paper's points: `value` in milliseconds a token if it is a time, else in MiB of most memory."""

    time: bool
    method: str
    length: int
    value: float


def read_shapes(params: Params, root: Path) -> list[Timed]:
    """Those configurations of `profile.shapes` that were timed.

    Raises:
        DataError: if a table is not what its stage writes.
    """
    folder = root / "artifacts" / "profile" / "shapes"
    read = (Timed(name, *read_profile(folder, name)) for name in params.profile.shapes)
    return [one for one in read if one.rows]


def by_method(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows of every method, by rising prompt length."""
    found: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: int(row["prompt_length"])):
        found.setdefault(row["method"], []).append(row)
    return {method: found[method] for method in dict.fromkeys(row["method"] for row in rows)}


def stars(timed: Timed) -> list[Star]:
    """The paper's numbers for a 7B shape on a GPU, at lengths and budgets that were measured; else none.

    The paper gives a speed-up, not a time: it becomes this machine's full cache divided by it.
    """
    if timed.machine.get("device", platform.machine()) == platform.machine():
        return []
    with open(PAPER, newline="", encoding="utf-8") as handle:
        points = [row for row in csv.DictReader(handle) if row["shape"] == timed.name]
    measured = {(row["method"], row["budget"], row["prompt_length"]) for row in timed.rows}
    full = {
        row["prompt_length"]: float(row["decode_ms_per_token"]) for row in timed.rows if row["method"] == "transformers"
    }
    found = []
    for point in points:
        method, length, value = point["method"], point["prompt_length"], float(point["value"])
        if (method, point["budget"], length) not in measured:
            continue
        if point["quantity"] == "peak_gb":
            found.append(Star(False, method, int(length), value * 1e9 / 2**20))
        elif length in full:
            found.append(Star(True, method, int(length), full[length] / value))
    return found


def latency(name: str, rows: Sequence[Row], points: Sequence[Star] = ()) -> bytes:
    """Milliseconds a token, most memory and bytes of keys and values, against prompt length.

    Dotted: the roofline, weights and kept keys and values over the bandwidth of a copy. Stars: the paper.
    """
    picture = Figure(figsize=(WIDTH, 8.6))
    time, peak, held = picture.subplots(3, 1, sharex=True)
    for number, (method, mine) in enumerate(by_method(rows).items()):
        lengths = [int(row["prompt_length"]) for row in mine]
        line = style(method).for_matplotlib() | {"markersize": 9 - 1.5 * (number % 4)}  # rings where methods coincide
        time.plot(lengths, [float(row["decode_ms_per_token"]) for row in mine], label=method, **line)
        bound = {"color": style(method).colour, "linestyle": ":", "linewidth": 1}
        time.plot(lengths, [float(row["roofline_ms"]) for row in mine], **bound)
        peak.plot(lengths, [int(row["peak_bytes"]) / 2**20 for row in mine], **line)
        held.plot(lengths, [int(row["kept_bytes"]) / 2**20 for row in mine], label=method, **line)
    for star in points:
        look = {"marker": "*", "markersize": 13, "color": style(star.method).colour, "linestyle": ""}
        (time if star.time else peak).plot([star.length], [star.value], **look)
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
