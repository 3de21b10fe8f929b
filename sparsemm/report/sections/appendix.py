"""Declared test models: everything that was measured of them, kept apart from what counts as evidence."""

from __future__ import annotations

from sparsemm.report.html import details, paragraph
from sparsemm.report.results import Results
from sparsemm.report.sections import accuracy, cost, heads, studies


def parts(results: Results) -> list[str]:
    """Per test model its note, then accuracy, heads, cost and studies folded; nothing where there is none."""
    if not results.evidence:
        return []  # the other sections already show these models
    found = []
    for model in results.models:
        if not model.note:
            continue
        made = [one for one in results.studies if model.key in one.rows]
        found += [
            paragraph(f"{model.label}: {model.note}.", "note"),
            details(f"{model.label}: accuracy", accuracy.of_model(model)),
            details(f"{model.label}: heads", heads.of_model(results, model)),
            details(f"{model.label}: bytes and latency", cost.of_model(model)),
            details(
                f"{model.label}: studies",
                *(details(one.study.title, studies.of_model(one, model)) for one in made),
            ),
        ]
    return found
