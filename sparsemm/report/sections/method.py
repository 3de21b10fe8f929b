"""How it was done, in two lines, and what the words of the page mean."""

from __future__ import annotations

from sparsemm.report.page import details, paragraph, terms
from sparsemm.report.sections.material import Material

TERMS = (
    ("slot", "room for the key and value of one token in one KV head of one layer."),
    ("B, budget", "slots per KV head, averaged over all KV heads of all layers; heads may get more or fewer."),
    ("window", "the newest tokens, which every head keeps; their queries also say what else is worth keeping."),
    ("rho", "share of the slots beyond the window that all heads get alike; the rest goes by score."),
    ("visual score", "how often a head looks most at the word about to be said, a hit weighing more on a small word."),
    ("read, qa", "tasks: read the page aloud (word accuracy); answer a question about it (exact match)."),
    ("full cache", "nothing is forgotten; what every saving is measured against."),
    ("sparsemm", "slots by visual score of the head."),
    ("snapkv", "the same slots for every head, filled with what the window attends to."),
    ("pyramidkv", "as snapkv, with more slots in the first layers and fewer in the last."),
    ("adakv", "as snapkv, with slots that move between the heads of a layer by attention, anew for every prompt."),
    ("random", "as sparsemm, with random scores, drawn several times."),
    ("95 % interval", "bootstrap over pages: other pages of this kind would move the number about so far."),
    ("better, worse", "the interval of the paired difference excludes zero; otherwise no difference is shown."),
)


def parts(material: Material) -> list[str]:
    """Scores in one sentence, budgets and methods in another; then the terms."""
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
        details("Terms used on this page", terms(TERMS)),
    ]
