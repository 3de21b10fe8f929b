"""How it was done, in two lines, and what the words of the page mean."""

from __future__ import annotations

from sparsemm.policies import policy_class
from sparsemm.report.documents import apart, evaluated, resampled
from sparsemm.report.page import details, paragraph, terms
from sparsemm.report.sections.material import Material

ANSWERS = {"greedy": "greedy answer", "ground_truth": "its known text as the answer"}
TERMS = (
    ("slot", "room for the key and value of one token in one KV head of one layer."),
    ("B, budget", "slots per KV head, averaged over all KV heads of all layers; heads may get more or fewer."),
    ("window", "the newest tokens, which every head keeps; their queries also say what else is worth keeping."),
    ("rho", "share of the slots beyond the window that all heads get alike; the rest goes by score."),
    ("visual score", "how often a head looks most at the word about to be said, a hit weighing more on a small word."),
    ("full cache", "nothing is forgotten; what every saving is measured against."),
)
TASKS = {"read": "read the page aloud", "qa": "answer a question about the page"}
METHODS = {
    "sparsemm": "slots by visual score of the head.",
    "snapkv": "the same slots for every head, filled with what the window attends to.",
    "pyramidkv": "as snapkv, with more slots in the first layers and fewer in the last.",
    "adakv": "as snapkv, with slots that move between the heads of a layer by attention, anew for every prompt.",
    "random": "as sparsemm, with random scores",
    "streaming": "the same slots for every head, filled with the first tokens and the newest ones.",
    "h2o": "the same slots for every head, filled with the newest tokens and those that all rows attend to most.",
    "sparsemm-adaptive": "as sparsemm, with part of each layer's slots moved between its heads by the prompt.",
}
VERDICTS = (
    ("95 % interval", "bootstrap {}: others of this kind would move the number about so far."),
    ("better, worse", "the interval of the paired difference excludes zero; otherwise no difference is shown."),
)


def parts(material: Material) -> list[str]:
    """Scores in one sentence, budgets and methods in another; then the terms."""
    params, results = material.params, material.results
    methods = ", ".join(params.evaluate.methods)
    known = apart(params, results)
    return [
        paragraph(
            f"A head scores when, as the model reads a page aloud ({ANSWERS[params.chase.answer]} to "
            f"{params.chase.prompt!r}), the position it attends to most lies on the word about to be said."
        ),
        paragraph(
            f"sparsemm gives KV heads slots by that score; the methods ({methods}) are compared at equal numbers of "
            f"slots. {known}".rstrip()
        ),
        details("Terms used on this page", terms(_terms(material))),
    ]


def _terms(material: Material) -> list[tuple[str, str]]:
    """Words of every page, then the tasks and methods of this one."""
    asked, tasks = material.params.evaluate, evaluated(material.results)
    rows = [row for mine in tasks.values() for row in mine]
    found = list(TERMS)
    for task, mine in tasks.items():
        metric = mine[0]["metric"].replace("_", " ")
        found.append((task, f"task: {TASKS.get(task, 'as lmms-eval asks it')} ({metric})."))
    for method in dict.fromkeys([*asked.methods, *(row["method"] for row in rows)]):
        if method in METHODS:
            times = f", drawn {asked.random_seeds} times." if asked.random_seeds > 1 else ", drawn once."
            found.append((method, METHODS[method] + (times if policy_class(method).drawn else "")))
    return found + [(word, text.format(resampled(rows))) for word, text in VERDICTS if rows]
