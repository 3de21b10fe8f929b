"""What was found: verdicts over all models, generated from the tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sparsemm.report.documents import apart, scope
from sparsemm.report.findings import comparisons, lossless_from, smallest_lossless, verdicts
from sparsemm.report.forest import against_methods
from sparsemm.report.page import bullets, chart, pair, paragraph, table
from sparsemm.report.results import Results, Row
from sparsemm.report.sections.material import Material
from sparsemm.report.short import in_short
from sparsemm.report.studies import area_differences, half_ranks

QUESTION = "Which attention heads look at the image, and how small can the KV cache be when you know?"
CAPTION = (
    "sparsemm: from which B on it is not shown worse than the full cache; and against every method, budgets at which "
    "it is better / undecided / worse"
)
READING = (
    "Numbers and verdicts here are computed from the tables of this page. B is the mean number of tokens kept per KV "
    "head. Better and worse mean that the 95 % bootstrap interval of the paired difference excludes zero; no "
    "difference shown means that it does not, not that the two are equal. The intervals are not corrected for the "
    "number of comparisons. Of fewer than two pages there is no interval and no verdict."
)


def parts(material: Material) -> list[str]:
    """The question, the answer in short, and the verdicts of every model and task."""
    results = material.results
    evidence = [result.key for result in results if not result.note]
    areas = area_differences(material.studies, evidence)
    said = bullets(in_short(results, areas, half_ranks(material.studies, evidence)))
    found = [paragraph(QUESTION, "lead"), _scope(material), pair(said, _areas(areas)) if areas else said]
    if any(result.evaluation for result in results):
        found.append(_verdicts(results))
    found.append(paragraph(READING))
    found += [paragraph(f"* {result.key}: {result.note}", "note") for result in results if result.note]
    return found


def _scope(material: Material) -> str:
    """Of which models and documents, in one line."""
    evidence = [result for result in material.results if not result.note]
    trained = sum(bool(result.card) for result in evidence)
    names = ", ".join(result.key for result in evidence) or "none yet"
    small = f" ({trained} of them small and trained in this repository)" if trained else ""
    asked, known = scope(material.params, material.results), apart(material.params, material.results)
    return paragraph(f"Models: {names}{small}. Evaluated: {asked}. {known}".rstrip(), "quiet")


def _areas(areas: Mapping[str, Sequence[Row]]) -> str:
    lines = {name.replace(", ", "<br>"): rows for name, rows in areas.items()}
    return chart(
        against_methods(lines),
        f"Differences of the area under accuracy over log2 B, sparsemm minus each method, of {'; '.join(areas)}.",
        "sparsemm minus every other method, as mean accuracy over all budgets (area under accuracy over log2 B). Right "
        "of zero sparsemm is better; where a bar crosses zero, no difference is shown.",
    )


def _verdicts(results: list[Results]) -> str:
    others = dict.fromkeys(m for r in results for m in comparisons(r))
    rows = []
    for result in results:
        for task in result.tasks():
            cells = []
            for method in others:
                found = verdicts(result, task, method)
                counts = [str(len(found.get(w, ()))) for w in ("better", "no difference shown", "worse")]
                cells.append(" / ".join(counts) if found else "-")
            enough = "-" if smallest_lossless(result, task) is None else lossless_from(result, task) or "none"
            rows.append([f"{result.label}, {task}", enough, *cells])
        if not result.evaluation:
            rows.append([f"{result.label}, not evaluated yet", *["-"] * (len(others) + 1)])
    header = ["model and task", "enough from B =", *(f"vs {method}" for method in others)]
    return table(header, rows, CAPTION)
