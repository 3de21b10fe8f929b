"""Bytes held and time a token."""

from __future__ import annotations

from sparsemm.report import charts
from sparsemm.report.findings import speed
from sparsemm.report.html import bullets, chart, details, paragraph, table, tabs
from sparsemm.report.results import Machine, Model, Results, Shape, Timing, paper_points

NOT_PROFILED = "Not profiled yet."
READING = (
    "The method called transformers is its own growing cache with sdpa, in the same run. Times are medians without an "
    "interval; bytes are exact. Most memory counts the weights. Dotted: the least a step can take, bytes of weights "
    "and "
    "kept keys and values over the bandwidth of a copy; no bound where they fit into the processor's own caches."
)
PAPER = (
    "Stars: the paper (arXiv 2506.05344) at the lengths and budgets that were measured here; its hardware may "
    "differ, and "
    "its speed-up is drawn as this machine's full cache divided by it."
)


def parts(results: Results) -> list[str]:
    """Per model and per 7B shape what follows, the charts and the numbers."""
    models = results.evidence or results.models
    panels = [(model.label, of_model(model)) for model in models]
    panels += [(shape.name, _of_shape(shape)) for shape in results.shapes]
    timed = any(model.timings for model in models) or results.shapes
    return [tabs("cost", panels), paragraph(READING, "quiet")] if timed else [paragraph(NOT_PROFILED, "note")]


def of_model(model: Model) -> str:
    """What sparsemm holds and costs, charts against prompt length, and the numbers folded."""
    if not model.timings:
        return paragraph(NOT_PROFILED, "note")
    said = speed(model)
    alt = f"Line charts against prompt length for {model.key}: milliseconds a token, most memory and bytes held."
    caption = f"{model.label} on {_named(model.machine)}."
    return bullets(said) + chart(charts.cost(model.timings), alt, caption) + _numbers(model.label, model.timings)


def _of_shape(shape: Shape) -> str:
    points = paper_points(shape)
    alt = f"Line charts against prompt length for {shape.name}: milliseconds a token, most memory and bytes held."
    caption = f"{shape.name} with random weights in bf16 on {_named(shape.machine)}. {PAPER if points else ''}"
    return chart(charts.cost(shape.timings, points), alt, caption.strip()) + _numbers(shape.name, shape.timings)


def _named(machine: Machine) -> str:
    """The device, and what else is known of it."""
    known = [
        f"{name} {value}" for name, value in machine.model_dump().items() if value is not None and name != "device"
    ]
    return ", ".join([machine.device, *known])


def _numbers(label: str, timings: list[Timing]) -> str:
    header = ["method", "ms a token", "times transformers", "bytes held", "prefill ms", "compression"]
    header += ["tokens a second", "least ms a token", "most bytes"]
    rows = [
        [
            f"{row.method}{f', B = {row.budget}' if row.budget else ''}, {row.prompt_length} tokens",
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
