"""How it was done, what the words of the page mean, and what was not measured."""

from __future__ import annotations

from collections.abc import Iterable

from sparsemm.evaluate.tasks import LOCAL
from sparsemm.evaluate.tasks.published import PUBLISHED
from sparsemm.params import Params
from sparsemm.params.datasets import SyntheticParams, may_share
from sparsemm.policies import is_method, policy_class, summary_of
from sparsemm.report.findings import count_range
from sparsemm.report.html import bullets, details, paragraph, terms
from sparsemm.report.results import Accuracy, Results

ANSWERS = {"greedy": "greedy answer", "ground_truth": "its known text as the answer"}
TERMS = (
    ("slot", "room for the key and value of one token in one KV head of one layer."),
    ("B, budget", "slots per KV head, averaged over all KV heads of all layers; heads may get more or fewer."),
    ("window", "the newest tokens, which every head keeps; their queries also say what else is worth keeping."),
    ("rho", "share of the slots beyond the window that all heads get alike; the rest goes by score."),
    ("visual score", "how often a head looks most at the word about to be said, a hit weighing more on a small word."),
    ("full cache", "nothing is evicted; what every saving is measured against."),
)
TASKS = {"read": "read the page aloud", "qa": "answer a question about the page"}
RATE = {"word_accuracy": ", one minus the word error rate"}


def parts(results: Results) -> list[str]:
    """How heads are scored and methods compared; the settings and limits behind every number; the terms."""
    params = results.params
    rows = [row for model in results.models for row in model.accuracy]
    scored = (
        f"A head scores when, as the model reads a page aloud ({ANSWERS[params.chase.answer]} to "
        f"{params.chase.prompt!r}), the position it attends to most lies on the word about to be said. sparsemm gives "
        f"KV heads slots by that score; the methods ({', '.join(params.evaluate.methods)}) are compared at equal "
        "numbers of slots."
    )
    verdicts = sum(1 for row in rows if row.gain and row.gain.verdict)
    notes = [
        "Not measured: other seeds of the same checkpoint. An interval says how far other pages could move a number, "
        "not how far another training run could.",
        f"Intervals are not corrected for the number of comparisons: were there no difference anywhere, about "
        f"{0.05 * verdicts:.2g} of the {verdicts} budget-by-budget intervals would still exclude zero by chance. "
        "No difference shown does not mean that two methods are equal."
        if verdicts
        else "",
        "What single heads look at on the explorer's pages illustrates; the scores over all calibration pages are the "
        "evidence.",
        f"Scores come from the data set {params.chase.dataset!r}; the row that predicts a token counts, argmax of q.k "
        "over the whole prefix; a hit weighs one over the number of visual tokens under the word.",
        *_budget_settings(params),
        *_documents(results),
        equal_slots(results),
    ]
    return [paragraph(scored), bullets(notes), details("Terms used on this page", terms(_terms(results, rows)))]


def resampled(rows: Iterable[Accuracy]) -> str:
    """What the bootstrap behind the intervals of these rows goes over."""
    rows = list(rows)
    pages = all(row.pages or row.task in LOCAL for row in rows)
    draws = " (and, for random methods, over draws)" if any((row.draws or 1) > 1 for row in rows) else ""
    return f"over {'pages' if pages else 'questions'}{draws}"


def equal_slots(results: Results) -> str:
    """Whether the compared methods really held the same; empty if nothing was evaluated."""
    groups: dict[tuple[str, str, int], list[float]] = {}
    for model in results.models:
        for row in model.accuracy:
            if row.budget:
                groups.setdefault((model.key, row.task, row.budget), []).append(row.kept_slots)
    if not groups:
        return ""
    spread = max(max(kept) - min(kept) for kept in groups.values())
    if spread < 0.005:
        return "At every budget, all methods held the same number of slots, measured. Bytes count keys and values."
    return (
        f"At one budget, methods held up to {spread:.2f} slots per KV head more than others, measured: compare them by "
        "the slots kept, not by B. Bytes count keys and values."
    )


def _budget_settings(params: Params) -> list[str]:
    """A sentence for each set of models whose budgets are made with the same settings."""
    alike: dict[str, list[str]] = {}
    for key in params.models:
        own = params.of(key)
        settings = (
            f"window {own.allocate.window}, rho {own.allocate.rho}, mode {own.allocate.mode}; observation scores are "
            f"pooled over {own.evaluate.pooling_kernel} positions for every method."
        )
        alike.setdefault(settings, []).append(key)
    if len(alike) == 1:
        return [f"Budgets: {settings}" for settings in alike]
    return [f"Budgets of {', '.join(keys)}: {settings}" for settings, keys in alike.items()]


def _documents(results: Results) -> list[str]:
    """Which documents every task asks about, and whether the scores may have seen them."""
    params = results.params
    tasks = list(dict.fromkeys(row.task for model in results.models for row in model.accuracy))
    if not tasks:
        return []
    asked = []
    for task in tasks:
        rows = [row for model in results.models for row in model.accuracy if row.task == task]
        count = count_range({row.n for row in rows}, "question")
        asked.append(
            f"{task}, {count} {_origin(results, task)} "
            f"({rows[0].metric.replace('_', ' ')}{RATE.get(rows[0].metric, '')})"
        )
    own, others = [task for task in tasks if task in LOCAL], [task for task in tasks if task not in LOCAL]
    chased, evaluated = params.datasets[params.chase.dataset], params.datasets[params.evaluate.dataset]
    said = [f"Evaluated: {'; '.join(asked)}; {params.evaluate.bootstrap} bootstrap resamples."]
    if own and may_share(chased, evaluated) is None:
        drawn = isinstance(chased, SyntheticParams) and isinstance(evaluated, SyntheticParams)
        how = "drawn from another split than" if drawn else "by their names, which is all that was compared, none of"
        said.append(f"The pages of {', '.join(own)} are {how} those of the scores ({params.chase.dataset!r}).")
    if others:
        said.append(
            f"Whether documents of {', '.join(others)} are among those of the scores ({params.chase.dataset!r}) was "
            "not "
            "checked."
        )
    return said


def _origin(results: Results, task: str) -> str:
    evaluate = results.params.evaluate
    if task in LOCAL:
        return f"about pages of {evaluate.dataset!r}"
    if task in PUBLISHED and evaluate.source == "hub":
        return f"of its split {PUBLISHED[task].split!r} on the hub"
    return f"of its files in {evaluate.source!r}"


def _terms(results: Results, rows: list[Accuracy]) -> list[tuple[str, str]]:
    evaluate = results.params.evaluate
    found = list(TERMS)
    for task in dict.fromkeys(row.task for row in rows):
        found.append((task, f"task: {TASKS.get(task, 'as lmms-eval asks it')}."))
    for method in dict.fromkeys([*evaluate.methods, *(row.method for row in rows)]):
        if is_method(method) and (summary := summary_of(method)):
            times = f", drawn {evaluate.random_seeds} times" if evaluate.random_seeds > 1 else ", drawn once"
            found.append((method, summary + (times if policy_class(method).drawn else "") + "."))
    if rows:
        found += [
            ("95 % interval", f"bootstrap {resampled(rows)}: others of this kind would move the number about so far."),
            ("better, worse", "the interval of the paired difference excludes zero; otherwise no difference is shown."),
        ]
    return found
