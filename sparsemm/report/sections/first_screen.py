"""Builds the first screen: three sentences about the first model that is evidence, and the method in pictures."""

from __future__ import annotations

from collections.abc import Sequence

from sparsemm.policies import is_drawn, is_method
from sparsemm.report.findings import compared_with_full, enough_from, own_timings, percent_range, signed
from sparsemm.report.html import bullets, pair, paragraph, pictures
from sparsemm.report.results import Accuracy, Model, Results
from sparsemm.report.style import method_label
from sparsemm.statistics import Estimate
from sparsemm.studies import StudyRow, tally
from sparsemm.studies.curve import headline as is_area
from sparsemm.studies.masking import LAYERS, RANDOM
from sparsemm.studies.masking import headline as is_masking

QUESTION = "Which attention heads look at the image, and how much does knowing them shrink the KV cache?"
NOTHING = "No model that counts as evidence has been evaluated yet."
TOO_FEW = "Models were evaluated, but there is no interval that could give a verdict."
CONTROLS = {RANDOM: "as many random heads off", LAYERS: "as many random heads of the same layers off"}
READING = (
    "B is the mean number of slots per KV head. Brackets are 95 % intervals. Better and worse mean that the interval "
    "of the paired difference excludes zero. Differences are sparsemm minus the other, so a positive one is in favour "
    "of sparsemm. All numbers are computed from the tables of this page."
)


def parts(results: Results) -> list[str]:
    """Shows the question, three sentences about the leading model, the picture, and all models in one sentence."""
    evidence = results.evidence
    lead = next((model for model in evidence if model.accuracy), next(iter(evidence), None))
    sentences = [] if lead is None else [heads(lead, results.study("masking")), methods(lead), size(lead)]
    if not any(sentences[1:]):
        sentences.append(TOO_FEW if any(model.accuracy for model in evidence) else NOTHING)
    return [
        paragraph(QUESTION, "lead"),
        pair(bullets(sentences), _picture(results, lead)),
        paragraph(all_models(results)),
        paragraph(READING, "quiet"),
    ]


def heads(model: Model, masking: Sequence[StudyRow]) -> str:
    """Describes how few heads hold a model's score, and what is lost without them, against random heads."""
    share = percent_range([model.heads.top_share(0.05)])
    text = f"The best 5 % of the heads of {model.label} hold {share} of its visual score"
    rows = [row for row in masking if row.model == model.key and is_masking(row) and row.difference and row.verdict]
    if not rows:
        return f"{text}."
    least = min(row.level or 0.0 for row in rows)  # the fewest heads, and the first task
    rows = [row for row in rows if (row.level or 0.0) == least and row.task == rows[0].task]
    controls = "; ".join(f"minus {CONTROLS[row.against or '']}: {signed(row.difference)}" for row in rows)
    return (
        f"{text}. With its best {100 * least:.0f} % of heads switched off, its {_metric(rows[0].metric)} is "
        f"{rows[0].estimate.text()} ({controls})."
    )


def methods(model: Model) -> str:
    """Compares sparsemm, and its variant that is best on these pages, with the strongest other method.

    The task is the first, the budget the one in the middle.
    """
    task, full = next(iter(model.tasks), ""), None
    budget = model.budgets[len(model.budgets) // 2] if model.budgets else None
    rows = {method: row for method in model.methods if (row := model.row(task, method, budget)) is not None}
    own, full = rows.get("sparsemm"), model.row(task, "full")
    others = [row for row in rows.values() if _is_rival(row) and row.gain and row.gain.verdict]
    if own is None or not others:
        return ""
    rival = max(others, key=lambda row: row.value)
    variants = [row for method, row in rows.items() if method.startswith("sparsemm") and method != "sparsemm"]
    best = max([own, *variants], key=lambda row: row.value)
    share = f" ({budget / full.kept_slots:.0%} of the prompt)" if full and budget else ""
    shown = ", ".join(_with(row) for row in (full, own, best if best is not own else None) if row)
    return (
        f"{_metric(own.metric).capitalize()} on {task} at {budget} slots per KV head{share}: {shown}, and "
        f"{_with(rival)}, the strongest other method. sparsemm minus {method_label(rival.method)} is "
        f"{signed(rival.gain)}."
    )


def size(model: Model) -> str:
    """Describes from which budget on sparsemm is not shown to be worse than the full cache, and the bytes it holds."""
    timings = own_timings(model)
    held = ""
    if timings:
        share = percent_range([timings[-1].kept_bytes / timings[-1].full_bytes])
        held = f"with a prompt of {timings[-1].prompt_length} tokens it holds {share} of the full cache's bytes"
    phrases = [_enough(model, task) for task in model.tasks if compared_with_full(model, task)]
    text = "; ".join([*phrases, held] if held else phrases)
    return f"sparsemm minus the full cache: {text}." if phrases else f"sparsemm: {held}." if held else ""


def _enough(model: Model, task: str) -> str:
    row, full, largest = enough_from(model, task), model.row(task, "full"), compared_with_full(model, task)[-1]
    if row is None or full is None:
        return f"{signed(largest.against_full)} on {task} at B = {largest.budget}, worse at the largest budget"
    share = f"{row.kept_slots / full.kept_slots:.0%} of the prompt"
    return f"{signed(row.against_full)} on {task} at B = {row.budget} ({share}), not shown worse from there on"


def all_models(results: Results) -> str:
    """Compares sparsemm with the strongest other method over all models, as a mean over all budgets."""
    areas = [row for row in results.study("curve") if is_area(row) and row.verdict and row.difference]
    others: dict[str, list[StudyRow]] = {}
    for row in areas:
        if row.against and row.against != "full" and not (is_method(row.against) and is_drawn(row.against)):
            others.setdefault(row.against, []).append(row)
    if not others:
        return ""
    name, rows = min(others.items(), key=lambda item: sum(row.diff or 0.0 for row in item[1]) / len(item[1]))
    differences = sorted((row.difference for row in rows if row.difference), key=lambda difference: difference.value)
    counts = ", ".join(f"{word} in {count}" for word, count in tally(rows).items() if count)
    models = len({row.model for row in rows})
    return (
        f"All models: as a mean over all budgets at equal slots, and compared with {method_label(name)}, the strongest "
        f"of {len(others)} other methods, sparsemm is {counts} of {len(rows)} cases (task and model, {models} in all), "
        f"from {differences[0].text('+')} to {differences[-1].text('+')}."
    )


def _is_rival(row: Accuracy) -> bool:
    own = row.method == "full" or row.method.startswith("sparsemm")
    return not own and is_method(row.method) and not is_drawn(row.method)


def _with(row: Accuracy) -> str:
    estimate: Estimate = row.accuracy
    return f"{estimate.text()} with {'the full cache' if row.method == 'full' else method_label(row.method)}"


def _metric(name: str) -> str:
    return name.replace("_", " ")


def _picture(results: Results, lead: Model | None) -> str:
    """Shows the method in pictures of one page, from the leading model or else the first model that has any."""
    first = [lead] if lead else []
    for model in [*first, *results.evidence, *results.models]:
        if model.explorer.get("method"):
            colours = "orange is attention, blue the word about to be read; evicted positions fade."
            return pictures(model.explorer["method"], f"{model.label} reads a page: {colours}")
    return ""
