"""Describes the method and its limits, and defines the terms of the page."""

from __future__ import annotations

from collections.abc import Iterable

from sparsemm.evaluate.tasks import LOCAL
from sparsemm.evaluate.tasks.published import PUBLISHED
from sparsemm.params import Params
from sparsemm.params.datasets import SyntheticParams, may_share
from sparsemm.policies import is_drawn, is_method, summary_of
from sparsemm.report.findings import count_range
from sparsemm.report.html import bullets, details, paragraph, terms
from sparsemm.report.results import Accuracy, Results
from sparsemm.report.style import method_label

ANSWERS = {"greedy": "greedy answer", "ground_truth": "its known text as the answer"}
TERMS = (
    ("slot", "room for the key and value of one token in one KV head of one layer."),
    ("B, budget", "slots per KV head, averaged over all KV heads of all layers; heads may get more or fewer."),
    ("window", "the newest tokens, which every head keeps; their queries also rate the older tokens."),
    ("rho", "share of the slots beyond the window that is split evenly between heads; the rest follows the scores."),
    ("visual score", "how often a head attends most to the word about to be read; a hit on a small word weighs more."),
    ("full cache", "the cache without eviction, against which savings are measured."),
)
TASKS = {"read": "read the page aloud", "qa": "answer a question about the page"}
RATE = {"word_accuracy": ", one minus the word error rate"}


def parts(results: Results) -> list[str]:
    """Explains how heads are scored and methods compared, with settings, limits and terms."""
    params = results.params
    rows = [row for model in results.models for row in model.accuracy]
    scored = (
        f"While the model reads a page ({ANSWERS[params.chase.answer]} to {params.chase.prompt!r}), a head scores "
        "whenever the position it attends to most lies on the word about to be read. sparsemm gives KV heads slots "
        f"according to this score. The methods ({', '.join(map(method_label, params.evaluate.methods))}) are compared "
        "at equal numbers of slots."
    )
    verdicts = sum(1 for row in rows if row.gain and row.gain.verdict)
    notes = [
        "Other seeds of the same checkpoint were not measured. An interval shows how much other pages could change a "
        "number, not how much another training run could.",
        f"Intervals are not corrected for the number of comparisons: if there were no difference anywhere, about "
        f"{0.05 * verdicts:.2g} of the {verdicts} budget-by-budget intervals would still exclude zero by chance. "
        "“No difference shown” does not mean that two methods are equal."
        if verdicts
        else "",
        "The explorer's pages illustrate what single heads attend to; the evidence is the scores over all calibration "
        "pages.",
        f"Scores come from the data set {params.chase.dataset!r}. For each answer token, the row that predicts it is "
        "used, with the argmax of q.k over the whole prefix. A hit counts one over the number of visual tokens under "
        "the word.",
        *_budget_settings(params),
        *_documents(results),
        equal_slots(results),
    ]
    return [paragraph(scored), bullets(notes), details("Terms used on this page", terms(_terms(results, rows)))]


def resampled(rows: Iterable[Accuracy]) -> str:
    """Names what the bootstrap of these rows resamples."""
    rows = list(rows)
    pages = all(row.pages or row.task in LOCAL for row in rows)
    draws = " (and, for random methods, over draws)" if any((row.draws or 1) > 1 for row in rows) else ""
    return f"over {'pages' if pages else 'questions'}{draws}"


def equal_slots(results: Results) -> str:
    """Describes whether the compared methods really held equally many slots; empty if nothing was evaluated."""
    groups: dict[tuple[str, str, int], list[float]] = {}
    for model in results.models:
        for row in model.accuracy:
            if row.budget:
                groups.setdefault((model.key, row.task, row.budget), []).append(row.kept_slots)
    if not groups:
        return ""
    spread = max(max(kept) - min(kept) for kept in groups.values())
    if spread < 0.005:
        return "At every budget, all methods measurably held the same number of slots. Bytes count keys and values."
    return (
        f"At the same budget, measured slots per KV head differ by up to {spread:.2f} between methods: compare them by "
        "the slots kept, not by B. Bytes count keys and values."
    )


def _budget_settings(params: Params) -> list[str]:
    """Returns a sentence for each set of models whose budgets have the same settings."""
    groups: dict[str, list[str]] = {}
    for key in params.models:
        own = params.of(key)
        settings = (
            f"window {own.allocate.window}, rho {own.allocate.rho}, mode {own.allocate.mode}; observation scores are "
            f"pooled over {own.evaluate.pooling_kernel} positions for every method."
        )
        groups.setdefault(settings, []).append(key)
    if len(groups) == 1:
        return [f"Budgets: {settings}" for settings in groups]
    return [f"Budgets of {', '.join(keys)}: {settings}" for settings, keys in groups.items()]


def _documents(results: Results) -> list[str]:
    """Describes the documents of every task, and whether they overlap with those of the scores."""
    params = results.params
    tasks = list(dict.fromkeys(row.task for model in results.models for row in model.accuracy))
    if not tasks:
        return []
    questions = []
    for task in tasks:
        rows = [row for model in results.models for row in model.accuracy if row.task == task]
        count = count_range({row.n for row in rows}, "question")
        questions.append(
            f"{task}, {count} {_origin(results, task)} "
            f"({rows[0].metric.replace('_', ' ')}{RATE.get(rows[0].metric, '')})"
        )
    own, others = [task for task in tasks if task in LOCAL], [task for task in tasks if task not in LOCAL]
    chased, evaluated = params.datasets[params.chase.dataset], params.datasets[params.evaluate.dataset]
    sentences = [f"Evaluated: {'; '.join(questions)}; {params.evaluate.bootstrap} bootstrap resamples."]
    if own and may_share(chased, evaluated) is None:
        drawn = isinstance(chased, SyntheticParams) and isinstance(evaluated, SyntheticParams)
        how = "are drawn from another split than" if drawn else "are, judged by their names alone, none of"
        sentences.append(f"The pages of {', '.join(own)} {how} those of the scores ({params.chase.dataset!r}).")
    if others:
        sentences.append(
            f"Whether documents of {', '.join(others)} are among those of the scores ({params.chase.dataset!r}) "
            "was not checked."
        )
    return sentences


def _origin(results: Results, task: str) -> str:
    evaluate = results.params.evaluate
    if task in LOCAL:
        return f"about pages of {evaluate.dataset!r}"
    if task in PUBLISHED and evaluate.source == "hub":
        return f"of its split {PUBLISHED[task].split!r} on the hub"
    return f"of its files in {evaluate.source!r}"


def _terms(results: Results, rows: list[Accuracy]) -> list[tuple[str, str]]:
    evaluate = results.params.evaluate
    glossary = list(TERMS)
    for task in dict.fromkeys(row.task for row in rows):
        glossary.append((task, f"task: {TASKS.get(task, 'as lmms-eval asks it')}."))
    for method in dict.fromkeys([*evaluate.methods, *(row.method for row in rows)]):
        if is_method(method) and (summary := summary_of(method)):
            times = f", drawn {evaluate.random_seeds} times" if evaluate.random_seeds > 1 else ", drawn once"
            glossary.append((method_label(method), summary + (times if is_drawn(method) else "") + "."))
        elif method == "downsampled":
            glossary.append((method, "the full cache of images made smaller until the prompt fits the budget."))
    if rows:
        glossary += [
            ("95 % interval", f"bootstrap {resampled(rows)}: how far other samples would typically move the number."),
            ("better, worse", "the interval of the paired difference excludes zero; otherwise no difference is shown."),
        ]
    return glossary
