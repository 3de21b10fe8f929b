"""Shows the results of declared test models, which do not count as evidence."""

from __future__ import annotations

from sparsemm.report.html import details, paragraph
from sparsemm.report.results import Results
from sparsemm.report.sections import accuracy, all_studies, bytes_and_latency, heads


def parts(results: Results) -> list[str]:
    """Shows the note of every test model, with accuracy, heads, cost and studies folded."""
    if not results.evidence:
        return []  # the other sections already show these models
    pieces = []
    for model in results.models:
        if not model.note:
            continue
        with_rows = [result for result in results.studies if model.key in result.rows]
        pieces += [
            paragraph(f"{model.label}: {model.note}.", "note"),
            details(f"{model.label}: accuracy", accuracy.of_model(model)),
            details(f"{model.label}: heads", heads.of_model(results, model)),
            details(f"{model.label}: bytes and latency", bytes_and_latency.of_model(model)),
            details(
                f"{model.label}: studies",
                *(details(result.study.title, all_studies.of_model(result, model)) for result in with_rows),
            ),
        ]
    return pieces
