"""Shows the recipe of every model: the method for each scenario, why, and the evidence for it."""

from __future__ import annotations

from sparsemm.recipes import SCENARIOS, Choice
from sparsemm.report.findings import signed
from sparsemm.report.html import details, heading, paragraph, table, tabs
from sparsemm.report.results import Model, Results
from sparsemm.report.style import method_label

HEADER = ["task", "slots per head", "compared with", "accuracy", "difference", "verdict"]
INTRODUCTION = (
    "The command tune searches a method for each model on some pages, and measures the winner on other pages. A winner "
    "that is not shown to be better than uniform SnapKV at equal bytes is replaced by a method that is, or by SnapKV."
)


def parts(results: Results) -> list[str]:
    """Shows one tab per model that has a recipe; empty if none has one."""
    models = [model for model in results.evidence or results.models if model.recipe is not None]
    if not models:
        return []
    return [paragraph(INTRODUCTION), tabs("recipes", [(model.label, of_model(model)) for model in models])]


def of_model(model: Model) -> str:
    """Shows the choice for each scenario, and what it was compared with."""
    assert model.recipe is not None
    html = ""
    for scenario, choice in model.recipe.scenarios.items():
        html += heading(f"{method_label(choice.name)}: {SCENARIOS[scenario]}") + paragraph(choice.why, "conclusion")
        html += details("Evidence", _evidence(model, choice, SCENARIOS[scenario]))
    return html


def _evidence(model: Model, choice: Choice, scenario: str) -> str:
    rows = [
        [
            row.task,
            "all" if row.budget is None else str(row.budget),
            method_label(row.against),
            f"{row.value:.3f}",
            signed(row.difference),
            row.verdict or "",
        ]
        for row in choice.evidence
        if row.method == choice.winner
    ]
    winner = method_label(choice.winner)
    caption = f"{model.label}, {scenario}: {winner} won the search; paired differences on pages that it never saw"
    return table(HEADER, rows, caption) if rows else ""
