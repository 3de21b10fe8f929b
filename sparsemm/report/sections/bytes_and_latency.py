"""Shows the bytes of the cache and the time per token."""

from __future__ import annotations

from sparsemm.report import charts
from sparsemm.report.findings import speed
from sparsemm.report.html import bullets, chart, details, paragraph, table, tabs
from sparsemm.report.results import Machine, Model, Results, Shape, Timing, paper_points
from sparsemm.report.style import method_label

NOT_PROFILED = "Not profiled yet."
READING = (
    "The method called transformers is the growing cache of transformers with sdpa, in the same run. Times are medians "
    "without an interval; bytes are exact. Peak memory includes the weights. Dotted lines are the least time of a "
    "step: the bytes of weights and kept keys and values over the bandwidth of a copy. This is no bound if they fit "
    "into the processor's caches."
)
PAPER = (
    "Stars are the paper's numbers (arXiv 2506.05344) at the lengths and budgets measured here. Its hardware may "
    "differ, and its speed-up is drawn as the time of this machine's full cache divided by it."
)


def parts(results: Results) -> list[str]:
    """Shows findings, charts and numbers per model and per 7B shape."""
    models = results.evidence or results.models
    panels = [(model.label, of_model(model)) for model in models]
    panels += [(shape.name, _of_shape(shape)) for shape in results.shapes]
    timed = any(model.timings for model in models) or results.shapes
    return [tabs("cost", panels), paragraph(READING, "quiet")] if timed else [paragraph(NOT_PROFILED, "note")]


def of_model(model: Model) -> str:
    """Shows what sparsemm holds and how fast it is, charts against prompt length, and the numbers folded."""
    if not model.timings:
        return paragraph(NOT_PROFILED, "note")
    alt = f"Line charts against prompt length for {model.key}: milliseconds per token, peak memory and bytes held."
    drawn = chart(charts.cost(model.timings), alt, f"{model.label} on {_named(model.machine)}.")
    return bullets(speed(model)) + drawn + _numbers(model.label, model.timings)


def _of_shape(shape: Shape) -> str:
    points = paper_points(shape)
    alt = f"Line charts against prompt length for {shape.name}: milliseconds per token, peak memory and bytes held."
    caption = f"{shape.name} with random weights in bf16 on {_named(shape.machine)}. {PAPER if points else ''}"
    return chart(charts.cost(shape.timings, points), alt, caption.strip()) + _numbers(shape.name, shape.timings)


def _named(machine: Machine) -> str:
    """Describes the machine: its device, threads and versions, as far as they are known."""
    values = machine.model_dump(exclude={"device"}, exclude_none=True)
    return ", ".join([machine.device, *(f"{name} {value}" for name, value in values.items())])


def _numbers(label: str, timings: list[Timing]) -> str:
    header = ["method", "ms per token", "times transformers", "bytes held", "prefill ms", "compression"]
    header += ["tokens per second", "least ms per token", "peak bytes"]
    rows = [
        [
            f"{method_label(row.method)}{f', B = {row.budget}' if row.budget else ''}, {row.prompt_length} tokens",
            f"{row.decode_ms_per_token:.2f}",
            f"{row.decode_ratio_to_full:.2f}",
            f"{row.kept_bytes:,}",
            f"{row.prefill_ms:.1f}",
            f"{row.compression_share:.1%}",
            f"{row.tokens_per_second:.0f}",
            f"{row.roofline_ms:.2f}",
            f"{row.peak_bytes:,}",
        ]
        for row in timings
    ]
    return details("All numbers", table(header, rows, f"{label}: time and bytes"))
