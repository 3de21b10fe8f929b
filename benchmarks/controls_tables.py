"""The tables of docs/results.md about the runs of benchmarks/controls.py: what each run reads and shows, and how alike
they rank the heads. The rules that the last columns apply were registered there before any run was measured.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsemm.scores import ScoreTable, rank_correlation
from sparsemm.tables import Row, read_rows
from sparsemm.training.card import STYLES

HERE = Path(__file__).parents[1]
NAME = "smollm2-llava-next"
COMMITTED = HERE / "artifacts" / "scores" / f"{NAME}.csv"
BEFORE = "text-before-tuning"  # the language model before any tuning, scored on text
RANKS, DIFFERENCE = "rank correlation", "top minus random, same layers"
READS = 0.5  # words read on pages with one column, below which a run says nothing about heads that read
SHARED, ALIKE, HELD = 9, 0.7, 0.5  # of the best 14 heads; rank correlation; share of the score in the best 5 %


class Agreement(Row):
    """A row of artifacts/controls/agreement.csv; `compare` explains the columns."""

    one: str
    other: str
    metric: str
    value: float
    ci_low: float
    ci_high: float
    chance: float | None


def shared_metric(count: int) -> str:
    """Returns the name of a metric of `compare`."""
    return f"best {count} shared"


def curve_table(path: Path) -> ScoreTable:
    """Returns the scores of a curve that the chase wrote, which are shares of the sum, as a table without pages."""
    with open(path, newline="", encoding="utf-8") as handle:
        shares = {(int(row["layer"]), int(row["head"])): float(row["share"]) for row in csv.DictReader(handle)}
    scores = np.zeros((1, *(1 + max(column) for column in zip(*shares, strict=True))), dtype=np.float64)
    for (layer, head), share in shares.items():
        scores[0, layer, head] = share
    header = {"model": path.stem, "revision": None, "fingerprint": "", "num_kv_heads": 1}
    return ScoreTable.from_samples(scores, np.zeros(scores.shape[1:], np.int64), header)


def table(artifacts: Path) -> str:
    """Returns two tables in Markdown: what every run reads and shows, and how alike the runs rank the heads.

    Under them stands how many heads have no score. What is said about heads that have one comes from the curves alone.
    """
    paths = [path for path in sorted(artifacts.glob("*.json")) if path.stem != BEFORE]
    if not paths:
        return "No run has been measured yet.\n"
    measured = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}
    before = artifacts / f"{BEFORE}.json"
    all_runs = measured | {BEFORE: json.loads(before.read_text(encoding="utf-8")) if before.is_file() else {}}
    lines = [
        "| run | steps | words read, 1 / 2 columns | best 5 / 10 % hold | split-half "
        "| best 10 % off, minus random of the same layers | prose | the findings |",
        "|---" * 8 + "|",
        *(f"| `{name}` | {' | '.join(run_cells(figures))} |" for name, figures in all_runs.items()),
        "",
        "| run | and | best 14 shared | best 27 shared | rank correlation | over heads that have a score in both "
        "| a property of the language model |",
        "|---" * 7 + "|",
    ]
    curves = {NAME: COMMITTED} | {name: artifacts / f"{name}.csv" for name in measured}
    scores = {name: curve_table(path).scores for name, path in curves.items() if path.is_file()}
    pairs: dict[tuple[str, str], list[Agreement]] = {}
    for row in read_rows(artifacts / "agreement.csv", Agreement):
        pairs.setdefault((row.one, row.other), []).append(row)
    for (one, other), rows in pairs.items():
        both = scored_in_both(scores[one], scores[other]) if {one, other} <= scores.keys() else "-"
        reading = [measured[name] for name in (one, other) if name in measured]
        verdict = "-" if BEFORE in (one, other) else property_of_the_model(rows, reading)
        lines.append(f"| `{one}` | `{other}` | {' | '.join(map(_alike, rows))} | {both} | {verdict} |")
    unscored = (f"`{name}` {np.count_nonzero(own == 0)} of {own.size}" for name, own in scores.items())
    lines += ["", f"Heads without any score: {', '.join(unscored)}."]
    return "\n".join(lines) + "\n"


def run_cells(figures: Mapping[str, Any]) -> list[str]:
    """Returns what stands in the row of a run, from its JSON file: all columns but its name."""
    about, scores, masking = figures.get("about"), figures.get("scores"), figures.get("masking")
    cells = ["-"] * 7
    if about:
        cells[0] = f"{about['steps']}" + (f" of {about['of_steps']}" if about["steps"] < about["of_steps"] else "")
    if "held_out" in figures:
        cells[1] = " / ".join(f"{100 * figures['held_out'][style]['word_accuracy']:.0f}" for style in STYLES)
    if scores:
        cells[2] = " / ".join(f"{100 * scores['top_share'][share]:.0f}" for share in ("5%", "10%"))
        cells[3] = f"{scores['split_half']:.3f}"
    if masking:
        cells[4] = signed(masking[DIFFERENCE])
    if "prose" in figures:
        cells[5] = f"{figures['prose']:.3f}"
    if scores and masking:
        sparse, shown = scores["top_share"]["5%"] >= HELD, masking[DIFFERENCE][2] < 0
        failed = [what for what, holds in (("sparse", sparse), ("masking", shown)) if not holds]
        cells[6] = f"not shown: {', '.join(failed)}" if failed else "hold"
    return cells


def reads(figures: Mapping[str, Any]) -> bool:
    """Returns whether a run reads enough words of pages with one column to say where heads are that read."""
    return bool(figures["held_out"][next(iter(STYLES))]["word_accuracy"] >= READS)


def property_of_the_model(rows: Sequence[Agreement], runs: Sequence[Mapping[str, Any]]) -> str:
    """Returns what the registered rule says of a pair, from its rows as `compare` orders them.

    Args:
        rows: the best 5 and 10 % that both have, and the rank correlation.
        runs: the JSON files of those of the two that are runs and not the committed checkpoint.
    """
    if not all(map(reads, runs)):
        return "reads too little"
    shared, _, ranks = rows
    assert shared.chance is not None and ranks.metric == RANKS
    if shared.ci_low <= shared.chance:
        return "no: made by the training"
    failed = [f"{shared.value:.0f} shared"] if shared.value < SHARED else []
    failed += [f"rank correlation {ranks.value:.2f}"] if ranks.value < ALIKE else []
    return f"neither: {', '.join(failed)}" if failed else "yes"


def _alike(row: Agreement) -> str:
    digits = 2 if row.metric == RANKS else 0
    cell = f"{row.value:.{digits}f} [{row.ci_low:.{digits}f}, {row.ci_high:.{digits}f}]"
    return cell if row.chance is None else f"{cell}, chance {row.chance:.1f}"


def scored_in_both(one: NDArray[np.float64], other: NDArray[np.float64]) -> str:
    """Returns the rank correlation over the heads whose score is not zero in either, and their number."""
    both = (one > 0) & (other > 0)
    return f"{rank_correlation(one[both], other[both]):.2f}, {np.count_nonzero(both)} heads"


def signed(ends: list[float]) -> str:
    """Returns a difference with its interval, in per cent."""
    value, low, high = (100 * end for end in ends)
    return f"{value:+.0f} [{low:+.0f}, {high:+.0f}]"
