"""Bytes held and time a token."""

from __future__ import annotations

from sparsemm.report.cost_charts import cost
from sparsemm.report.efficiency import Timed, stars
from sparsemm.report.findings import speed
from sparsemm.report.page import bullets, chart, details, heading, paragraph, table
from sparsemm.report.results import Results, Row
from sparsemm.report.sections.material import Material

NOT_PROFILED = "Not profiled yet."
PANELS = "milliseconds a token, most memory and bytes of keys and values held"
ROOFLINE = "Dotted: the least a step can take, bytes of weights and kept keys and values over the bandwidth of a copy"


def parts(material: Material) -> list[str]:
    """Per model: what follows, the chart, the numbers; then the 7B configurations that were timed."""
    found = []
    for result in material.results:
        found.append(heading(result.name))
        found.append(_profile(result) if result.profile else paragraph(NOT_PROFILED, "note"))
    for timed in material.shapes:
        found += [heading(timed.name), _shape(timed)]
    return found


def _profile(result: Results) -> str:
    given = result.machine
    known = [f"{name} {given[name]}" for name in ("device", "threads", "torch", "transformers") if name in given]
    said = speed(result)
    shown = chart(
        cost(result.profile),
        f"Three line charts against prompt length for {result.key}: {PANELS}. {' '.join(said)}",
        f"{result.name}: medians, {', '.join(known) or 'machine unknown'}. The method called transformers is its own "
        "growing cache with sdpa, in the same run. Times have no interval; bytes are exact. Most memory counts the "
        f"weights. {ROOFLINE}; no bound where they fit into the processor's own caches.",
    )
    return bullets(said) + shown + details("All numbers", _numbers(result.label, result.profile))


def _shape(timed: Timed) -> str:
    points = stars(timed)
    paper = (
        " Stars: the paper (arXiv 2506.05344) at the lengths and budgets that were measured here; its hardware may "
        "differ, and its speed-up is drawn as this machine's full cache divided by it."
    )
    shown = chart(
        cost(timed.rows, points),
        f"Three line charts against prompt length for {timed.name}: {PANELS}.",
        f"{timed.name} with random weights in bf16 on {timed.machine.get('device', 'an unknown device')}, medians. "
        f"{ROOFLINE}.{paper if points else ''}",
    )
    return shown + details("All numbers", _numbers(timed.name, timed.rows))


def _numbers(label: str, rows: list[Row]) -> str:
    header = ["method", "ms a token", "times transformers", "bytes held", "prefill ms", "compression"]
    header += ["tokens a second", "least ms a token", "most bytes"]
    return table(header, map(_row, rows), f"{label}: time and bytes")


def _row(row: Row) -> list[str]:
    budget = f", B = {row['budget']}" if row["budget"] else ""
    return [
        f"{row['method']}{budget}, {row['prompt_length']} tokens",
        f"{float(row['decode_ms_per_token']):.2f}",
        f"{float(row['decode_ratio_to_full']):.2f}",
        f"{int(row['kept_bytes']):,}",
        f"{float(row['prefill_ms']):.1f}",
        f"{float(row['compression_share']):.1%}",
        f"{float(row['tokens_per_second']):.0f}",
        f"{float(row['roofline_ms']):.2f}",
        f"{int(row['peak_bytes']):,}",
    ]
