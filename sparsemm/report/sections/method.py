"""How it was done, in two lines."""

from __future__ import annotations

from sparsemm.report.page import paragraph
from sparsemm.report.sections.material import Material


def parts(material: Material) -> list[str]:
    """Scores in one sentence, budgets and methods in another."""
    given = material.params
    methods = ", ".join(given.evaluate.methods)
    return [
        paragraph(
            f"A head scores when, as the model reads a page aloud ({given.chase.answer} answer to "
            f"{given.chase.prompt!r}), the position it attends to most lies on the word about to be said."
        ),
        paragraph(
            "sparsemm gives KV heads slots by that score; the methods "
            f"({methods}) are compared at equal numbers of slots, on pages that no score was computed from."
        ),
    ]
