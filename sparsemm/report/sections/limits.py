"""How sure this is: how the numbers were made, and what was not measured."""

from __future__ import annotations

from sparsemm.report.documents import apart, metrics, resampled, scope
from sparsemm.report.findings import equal_slots
from sparsemm.report.page import bullets
from sparsemm.report.sections.material import Material


def parts(material: Material) -> list[str]:
    """The settings behind every number, and the limits of what they show."""
    params, results = material.params, material.results
    given, asked = params.allocate, params.evaluate
    notes = [
        "Not measured: other seeds of the same checkpoint. An interval says how far other pages could move a number, "
        "not how far another training run could.",
        "What single heads look at on the explorer's pages illustrates; the scores over all calibration pages are the "
        "evidence.",
        f"Scores: {params.chase.answer} answers to {params.chase.prompt!r} over the data set "
        f"{params.chase.dataset!r}; the row that predicts a token counts, argmax of q.k over the whole prefix; a hit "
        "weighs one over the number of visual tokens under the word. The top 5 % of heads are the nearest whole number "
        "of heads, at least one.",
        f"Budgets: window {given.window}, rho {given.rho}, mode {given.mode}; observation scores are pooled over "
        f"{asked.pooling_kernel} positions for every method.",
    ]
    if rows := [row for result in results for row in result.evaluation]:
        known = any(row["ci_low"] for row in rows)
        how = f"95 % bootstrap intervals {resampled(rows)}, {asked.bootstrap} resamples" if known else "No interval"
        notes.append(
            f"Accuracy: {scope(params, results)}. {apart(params, results)} {how}; differences are paired. "
            f"Metrics: {metrics(results)}."
        )
    if slots := equal_slots(results):
        notes.append(slots)
    return [bullets(notes)]
