"""Bytes held and time a token."""

from __future__ import annotations

from sparsemm.report import charts
from sparsemm.report.findings import speed
from sparsemm.report.page import bullets, chart, details, heading, paragraph, table
from sparsemm.report.results import Results
from sparsemm.report.sections.material import Material

NOT_PROFILED = "Not profiled yet."


def parts(material: Material) -> list[str]:
    """Per model: what follows, the chart, the numbers."""
    found = []
    for result in material.results:
        found.append(heading(result.name))
        found.append(_profile(result) if result.profile else paragraph(NOT_PROFILED, "note"))
    return found


def _profile(result: Results) -> str:
    given = result.machine
    known = [f"{name} {given[name]}" for name in ("device", "threads", "torch", "transformers") if name in given]
    said = speed(result)
    shown = chart(
        charts.cost(result),
        f"Two line charts against prompt length for {result.key}: milliseconds a token, and bytes held. "
        f"{' '.join(said)}",
        f"{result.name}: medians, {', '.join(known) or 'machine unknown'}. The method called transformers is its own "
        "growing cache with sdpa, in the same run. Times have no interval; bytes are exact.",
    )
    header = ["method", "B", "prompt", "prefill ms", "ms a token", "times transformers", "bytes held"]
    rows = [
        [
            row["method"],
            row["budget"] or "all",
            row["prompt_length"],
            f"{float(row['prefill_ms']):.1f}",
            f"{float(row['decode_ms_per_token']):.2f}",
            f"{float(row['decode_ratio_to_full']):.2f}",
            f"{int(row['kept_bytes']):,}",
        ]
        for row in result.profile
    ]
    return bullets(said) + shown + details("All numbers", table(header, rows, f"{result.label}: time and bytes"))
