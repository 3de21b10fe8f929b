"""Builds the first screen: the findings in three sentences, and the method in one picture."""

from __future__ import annotations

from collections.abc import Sequence

from sparsemm.report.findings import compared_with_full, enough_from, own_timings, percent_range
from sparsemm.report.html import bullets, pair, paragraph, pictures
from sparsemm.report.results import Model, Results
from sparsemm.studies import StudyRow, tally
from sparsemm.studies.curve import headline as is_area
from sparsemm.studies.masking import headline as is_masking

QUESTION = "Which attention heads look at the image, and how much does knowing them shrink the KV cache?"
NOTHING = "No model that counts as evidence has been evaluated yet."
TOO_FEW = "Models were evaluated, but there is no interval that could give a verdict."
READING = (
    "B is the mean number of slots per KV head. Better and worse mean that the 95 % interval of the paired difference "
    "excludes zero. Differences are sparsemm minus the other, so a positive one is in favour of sparsemm. All numbers "
    "are computed from the tables of this page."
)


def parts(results: Results) -> list[str]:
    """Shows the question, three sentences, the picture, and how to read them."""
    evidence = results.evidence
    sentences = [heads(evidence, results.study("masking")), methods(results), size(evidence)]
    if not any(sentences[1:]):
        sentences.append(TOO_FEW if any(model.accuracy for model in evidence) else NOTHING)
    return [paragraph(QUESTION, "lead"), pair(bullets(sentences), _picture(results)), paragraph(READING, "quiet")]


def heads(evidence: Sequence[Model], masking: Sequence[StudyRow]) -> str:
    """Describes how few heads hold the score, and what is lost without them."""
    if not evidence:
        return ""
    shares = [model.heads.top_share(0.05) for model in evidence]
    text = f"The best 5 % of heads hold {percent_range(shares)} of the visual score in {_models(evidence)}"
    rows = [row for row in masking if is_masking(row) and row.difference and row.verdict]
    if rows:
        most = min(rows, key=lambda row: row.difference.value if row.difference else 0.0)
        text += (
            "; with the best heads switched off, accuracy is lower than with as many random heads switched off in "
            f"{tally(rows)['worse']} of {len(rows)} comparisons, by at most {most.difference.text('+')}"  # type: ignore[union-attr]
        )
    return text + "."


def methods(results: Results) -> str:
    """Compares sparsemm with the strongest other method at equal slots, as a mean over all budgets."""
    areas = [row for row in results.study("curve") if is_area(row) and row.verdict and row.difference]
    others: dict[str, list[StudyRow]] = {}
    for row in areas:
        if row.against not in ("full", "random"):
            others.setdefault(row.against or "", []).append(row)
    if not others:
        return _by_budget(results.evidence)
    name, rows = min(others.items(), key=lambda item: sum(row.diff or 0.0 for row in item[1]) / len(item[1]))
    differences = sorted((row.difference for row in rows if row.difference), key=lambda difference: difference.value)
    counts = ", ".join(f"{word} in {count}" for word, count in tally(rows).items() if count)
    return (
        f"At equal slots, averaged over all budgets and compared with {name}, the strongest of {len(others)} other "
        f"methods, sparsemm is {counts} of {len(rows)} cases (model, task), from {differences[0].text('+')} to "
        f"{differences[-1].text('+')}."
    )


def _by_budget(evidence: Sequence[Model]) -> str:
    gains = [
        row.gain
        for model in evidence
        for row in model.accuracy
        if row.method != "full" and row.gain and row.gain.verdict
    ]
    if not gains:
        return ""
    better, worse = (sum(gain.verdict == word for gain in gains) for word in ("better", "worse"))
    least, most = min(gains), max(gains)
    return (
        f"At equal slots, sparsemm is better than another method in {better} and worse in {worse} of {len(gains)} "
        f"comparisons (model, task, method, budget), from {least.text('+')} to {most.text('+')}."
    )


def size(evidence: Sequence[Model]) -> str:
    """Describes from which budget on sparsemm is not shown to be worse than the full cache, and what it holds."""
    cases = [(model, task) for model in evidence for task in model.tasks if compared_with_full(model, task)]
    shares = [rows[-1].kept_bytes / rows[-1].full_bytes for model in evidence if (rows := own_timings(model))]
    held = (
        f"with the longest profiled prompt, sparsemm holds {percent_range(shares)} of the full cache's bytes"
        if shares
        else ""
    )
    if not cases:
        return f"{held[0].upper()}{held[1:]}; accuracy was not measured." if held else ""
    enough = [row for case in cases if (row := enough_from(*case))]
    largest = [compared_with_full(*case)[-1].against_full for case in cases]
    losses = sorted(one for one in largest if one)
    budgets = ", ".join(map(str, sorted({row.budget for row in enough if row.budget})))
    from_on = f" (from B = {budgets} on)" if enough else ""
    return (
        f"At the largest budgets, sparsemm is not shown worse than the full cache in {len(enough)} of {len(cases)} "
        f"cases{from_on}; at the largest budget it differs by {losses[0].text('+')} to {losses[-1].text('+')}"
        f"{'; ' + held if held else ''}."
    )


def _models(evidence: Sequence[Model]) -> str:
    return "one model" if len(evidence) == 1 else f"{len(evidence)} models"


def _picture(results: Results) -> str:
    """Shows the method in pictures of one page, from the first model that has any."""
    for model in [*results.evidence, *results.models]:
        if model.explorer.get("method"):
            colours = "orange is attention, blue the word about to be read; evicted positions fade."
            return pictures(model.explorer["method"], f"{model.label} reads a page: {colours}")
    return ""
