"""Study: every method under one protocol, with budgets that are shares of each prompt: EffiVLM-Bench's measures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from sparsemm.evaluate.rows import FULL, OVERALL, PAPER, Arm, Outcome, Row, over_seeds
from sparsemm.params.strict import Count
from sparsemm.params.studies import Methods, MethodsParams
from sparsemm.policies import METHODS, is_drawn, policy_class
from sparsemm.statistics import BETTER, UNDECIDED, WORSE, Values, bootstrap_means, interval
from sparsemm.studies import Rows, Study, StudyRow, Table, compared, sentence

if TYPE_CHECKING:
    from sparsemm.evaluate.answers import Batch, Reply, Variant
    from sparsemm.evaluate.questions import Question
    from sparsemm.evaluate.tasks.pages import PageTask
    from sparsemm.studies.common.experiment import Experiment

BASELINE = "snapkv"  # uniform budgets
LOYALTY, GENERALISATION = "loyalty", "generalisation"
PERFORMANCE, AGREEMENT = "accuracy / full", "agreement with full"
SPREAD = "deviation of accuracy / full over tasks"
SELECTED = {  # selectors beside each policy's own
    BASELINE: "mixkv bacon critical expected keydiff knorm tova echo peak blend-echo kvzip random-visual "
    "random-visual-per-head",
    PAPER: "peak blend-echo kvzip",
}
EVERY = (
    *(name for name in METHODS if name != FULL),
    *(f"{policy}+{selector}" for policy, selectors in SELECTED.items() for selector in selectors.split()),
)
SIGNS = {BETTER: "+", WORSE: "−", UNDECIDED: "="}
Part = Annotated[float, Field(gt=0.0, lt=1.0)]
Draws = dict[Arm, list[Outcome]]


class ProtocolParams(MethodsParams):
    """The methods, and the shares of each prompt and the absolute budgets at which they are measured."""

    methods: Methods = Field(EVERY, description="default: all, each with its own selector, and the useful pairs")
    shares: tuple[Part, ...] = Field(min_length=1, description="of each prompt's tokens; at least allocate.window")
    budgets: tuple[Count, ...] = Field(
        (), description="mean slots per KV head beside the shares, the same for all prompts"
    )
    downsampled: bool = Field(True, description="also the full cache of an image that was made smaller")
    seeds: Count = Field(3, description="draws of a method that draws heads or positions")
    repetitions: Count = Field(12, description="other seeds under which each verdict is looked at again")


def slots(length: int, share: float | None, budget: int | None, window: int) -> int:
    """Returns the mean slots per KV head for a prompt of `length` tokens: its share, at least the window, or B."""
    return budget if budget is not None else max(window, round((share or 0.0) * length))


def sized(experiment: Experiment, method: str, share: float | None, budget: int | None, seed: int, n: int) -> Variant:
    """Returns the variant of a method for prompts of `n` tokens."""
    size = slots(n, share, budget, experiment.params.allocate.window)
    return experiment.variant(method, size if policy_class(method).compresses else None, seed=seed)


def ask(model: Any, batch: Batch, variants: Mapping[str, Any], limit: int) -> Mapping[str, Reply]:
    """Answers a batch of prompts of one length, with budgets for that length."""
    from sparsemm.evaluate.answers import answer

    length = int(batch.inputs["input_ids"].shape[1])
    return answer(model, batch, {name: make(length) for name, make in variants.items()}, limit)


def equal_batches(experiment: Experiment, questions: Sequence[Question], lengths: Sequence[int]) -> Iterator[Batch]:
    """Yields batches of prompts that have equally many tokens, so that one budget is the share of each of them."""
    from sparsemm.evaluate.answers import make_batch

    size = experiment.params.evaluate.batch_size
    for length in sorted(set(lengths)):
        alike = [at for at, own in enumerate(lengths) if own == length]
        for start in range(0, len(alike), size):
            yield make_batch(experiment.processor, questions, alike[start : start + size], experiment.reading)


def measure(experiment: Experiment, options: ProtocolParams, name: str) -> Draws:
    """Returns the outcomes of one task: every draw of each arm. `experiment.refused` has the others, and why."""
    task = experiment.task(name)
    lengths = [_length(experiment.processor, question) for question in task.questions]
    draws: Draws = {}
    variants: dict[Arm, Any] = {}
    at = [(share, None) for share in options.shares] + [(None, budget) for budget in options.budgets]
    for method, (share, budget) in [(FULL, (None, None)), *product(options.methods, at)]:
        for draw in range(options.seeds if is_drawn(method) else 1):
            seed = experiment.params.evaluate.seed + draw
            make = partial(sized, experiment, method, share, budget, seed)
            variants[Arm(name, f"draw {draw}", method, share, budget)] = make
    batches = partial(equal_batches, experiment, task.questions, lengths)
    for arm, outcome in experiment.measure(variants, ask, batches).items():
        draws.setdefault(arm._replace(condition=""), []).append(outcome)
    experiment.refused = {arm._replace(condition=""): reason for arm, reason in experiment.refused.items()}
    for share, budget in at if options.downsampled else []:
        sizes = [slots(n, share, budget, experiment.params.allocate.window) for n in lengths]
        _downsample(experiment, task, Arm(name, "", "downsampled", share, budget), sizes, draws)
    return draws


def _length(processor: Any, question: Question) -> int:
    from sparsemm.prompts import build_inputs

    return int(build_inputs(processor, [question.images()], [question.prompt])["input_ids"].shape[1])


def _downsample(experiment: Experiment, task: PageTask, arm: Arm, sizes: list[int], draws: Draws) -> None:
    """Measures the full cache of smaller images, each prompt having at most its number of `sizes`."""
    from sparsemm.evaluate.downsampled import PromptLengths, downsampled

    lengths = PromptLengths(experiment.processor)
    factors = [lengths.factor(question, size) for question, size in zip(task.questions, sizes, strict=True)]
    if None in factors:
        experiment.refused[arm] = f"{factors.count(None)} of {len(factors)} prompts are longer at any size of the image"
        return
    smaller = downsampled(task, factors)
    draws[arm] = [experiment.outcomes({arm.task: smaller}, {arm: experiment.variant(FULL, None)})[arm]]


def agreement(task: str, outcome: Outcome, full: Outcome) -> Values:
    """Returns (n,) how far answers agree with the full cache's: the task's own measure, with these as reference."""
    from sparsemm.evaluate.tasks.functions import SCORERS

    pairs = [(one.prediction, other.prediction) for one, other in zip(outcome.samples[0], full.samples[0], strict=True)]
    return np.array([SCORERS[task](one, other) if other.split() else float(one == other) for one, other in pairs])


def over_tasks(draws: Draws, tasks: Sequence[str]) -> tuple[Draws, dict[Arm, Values]]:
    """Returns performance and loyalty of every arm that has all tasks, by draw, and its (T, n) accuracies over full's.

    Performance is the accuracy over the full cache's mean accuracy, averaged over tasks page by page, so that its
    interval takes the full cache's accuracy on these pages as known. A task in which that is zero is left out.
    """
    full = {task: draws[Arm(task, "", FULL)][0] for task in tasks}
    tasks = [task for task in tasks if full[task].values.any()]
    result: Draws = {}
    ratios: dict[Arm, Values] = {}
    for arm in [one for one in draws if tasks and one.task == tasks[0]]:
        each = [draws.get(arm._replace(task=task)) for task in tasks]
        if None in each:
            continue
        overall = arm._replace(task=OVERALL)
        for own in zip(*filter(None, each), strict=True):
            kept, size = (float(np.mean([getattr(one, name) for one in own])) for name in ("kept", "bytes"))
            over = np.stack([one.values / full[task].values.mean() for task, one in zip(tasks, own, strict=True)])
            alike = [agreement(task, one, full[task]) for task, one in zip(tasks, own, strict=True)]
            result.setdefault(overall, []).append(Outcome(over.mean(axis=0), PERFORMANCE, kept, size))
            loyal = Outcome(np.mean(alike, axis=0), AGREEMENT, kept, size)
            result.setdefault(overall._replace(condition=LOYALTY), []).append(loyal)
            ratios[overall] = ratios.get(overall, 0.0) + over / len(each[0] or ())
    return result, ratios


def against(arm: Arm) -> list[Arm]:
    """Returns what an arm is compared with: uniform SnapKV, and sparsemm as published, at the same slots."""
    if arm.condition or arm.setting == FULL:
        return []
    return [arm._replace(setting=name) for name in (BASELINE, PAPER)]


def run(experiment: Experiment, options: ProtocolParams) -> list[Row]:
    """Returns one row per task, method, budget and comparison, then performance, loyalty and generalisation.

    The column `steady` is the share of `repetitions` in which a verdict is the same: each has another seed of the
    bootstrap, and one draw alone of a method that draws. A method that refuses any of the prompts at a budget has a
    row with the reason.
    """
    draws: Draws = {}
    for name in options.tasks:
        draws |= measure(experiment, options, name)
    means, ratios = over_tasks(draws, options.tasks)
    draws |= means
    outcomes = {arm: over_seeds(own) for arm, own in draws.items()}
    rows = experiment.rows(outcomes, against)
    again = []
    for seed in range(1, 1 + options.repetitions):
        alone = {arm: own[seed % len(own)] for arm, own in draws.items()}
        again.append([row.get("verdict") for row in experiment.rows(alone, against, seed)])
    for row, *verdicts in zip(rows, *again, strict=True):
        verdict = row.get("verdict")
        row["steady"] = round(verdicts.count(verdict) / len(verdicts), 3) if verdict else ""
    return rows + [_generalisation(experiment, arm, outcomes[arm], over) for arm, over in ratios.items()]


def _generalisation(experiment: Experiment, arm: Arm, outcome: Outcome, over: Values) -> Row:
    """Returns the row of the standard deviation over tasks of accuracy over the full cache's, from (T, n) of these."""
    row = experiment.rows({arm._replace(condition=GENERALISATION): outcome}, against)[0]
    asked, value = experiment.params.evaluate, float(over.mean(axis=1).std())
    low, high = interval(bootstrap_means(over, asked.bootstrap, asked.seed).std(axis=0))
    ends = {"value": value, "ci_low": min(low, value), "ci_high": max(high, value)}
    return row | {name: round(end, 6) for name, end in ends.items()} | {"metric": SPREAD, "spread": "", "needed": ""}


def place(row: StudyRow) -> str:
    """Returns what a row is measured at: "10 %" of each prompt, or "B = 24"."""
    return f"{100 * row.level:g} %" if row.level is not None else f"B = {row.budget}" if row.budget else ""


def overall(rows: Rows) -> list[StudyRow]:
    """Returns the rows of performance over all tasks, those of the full cache left out."""
    return [row for row in rows if row.task == OVERALL and not row.condition and row.setting != FULL]


def conclusion(rows: Rows) -> str:
    """Returns how many methods are better and worse than the two baselines, how steady that is, and the best ones."""
    own = [row for row in overall(rows) if row.verdict]
    parts = [f"against {name}: {compared(r for r in own if r.against == name)}" for name in (BASELINE, PAPER)]
    if not own:
        return ""
    steady = sum(row.steady == 1.0 for row in own)
    parts.append(f"{steady} of {len(own)} verdicts are the same under every other seed")
    for at in dict.fromkeys(place(row) for row in own if row.level is not None):
        best: dict[str, StudyRow] = {}
        for row in own:
            if place(row) == at and (row.model not in best or row.value > best[row.model].value):
                best[row.model] = row
        parts.append(f"largest at {at}: {', '.join(f'{one.setting} {one.value:.2f}' for one in best.values())}")
    return sentence("Accuracy over the full cache's, mean over tasks, at equal slots, ", parts)


def tables(rows: Rows, refused: Sequence[str]) -> list[Table]:
    """Returns the tables of one model: performance by method and share, and all measures.

    Args:
        rows: what was measured.
        refused: methods that were refused somewhere; one that was refused everywhere is the last row of the first.
    """
    own = overall(rows)
    places = list(dict.fromkeys(place(row) for row in own))
    cells: dict[str, dict[str, list[StudyRow]]] = {}
    for row in own:
        cells.setdefault(row.setting, {}).setdefault(place(row), []).append(row)
    order = sorted(cells, key=lambda name: -sum(each[0].value for each in cells[name].values()) / len(cells[name]))
    nowhere = [name for name in dict.fromkeys(refused) if name not in cells]
    first = [[name, *(_cell(cells.get(name, {}).get(at, [])) for at in places)] for name in [*order, *nowhere]]
    others = {(r.setting, place(r), r.condition): r for r in rows if r.condition in (LOYALTY, GENERALISATION)}
    full = next((row.bytes for row in rows if row.task == OVERALL and row.setting == FULL), None)
    second = []
    for name in order:
        for at, each in cells[name].items():
            loyal, general = (others.get((name, at, what)) for what in (LOYALTY, GENERALISATION))
            size = f"{each[0].bytes / full:.3f}" if full and each[0].bytes else ""
            more = [one.estimate.text() if one else "" for one in (general, loyal)]
            second.append([f"{name}, {at}", each[0].estimate.text(), *more, size, *_verdicts(each)])
    signs = f"{SIGNS[BETTER]} better, {SIGNS[WORSE]} worse, {SIGNS[UNDECIDED]} not shown; ? if other seeds disagree"
    caption = f"Per cent of the full cache's accuracy, mean over tasks; against {BASELINE}, then {PAPER}: {signs}"
    header = [
        "method",
        "performance",
        "generalisation",
        "loyalty",
        "bytes / full",
        *(f"minus {BASELINE}", f"minus {PAPER}"),
    ]
    return [
        Table(caption, ["method", *places], first),
        Table("All measures; in brackets the share of other seeds with the same verdict", header, second),
    ]


def _cell(rows: Sequence[StudyRow]) -> str:
    by_name = {row.against: row for row in rows}
    signs = [
        SIGNS[row.verdict] + ("?" if row.steady != 1.0 else "") if row and row.verdict else "·"
        for row in (by_name.get(BASELINE), by_name.get(PAPER))
    ]
    return f"{100 * rows[0].value:.0f} {' '.join(signs)}" if rows else "refused"


def _verdicts(rows: Sequence[StudyRow]) -> list[str]:
    by_name = {row.against: row for row in rows if row.difference is not None}
    return [
        f"{row.difference.text('+')} {row.verdict} ({row.steady:.2f})" if row and row.difference else ""
        for row in (by_name.get(BASELINE), by_name.get(PAPER))
    ]


def drawn(rows: Rows) -> Rows:
    """Returns the performance of the two baselines and of the five methods with the largest mean."""
    own = overall(rows)
    means = {name: np.mean([row.value for row in own if row.setting == name]) for name in {r.setting for r in own}}
    names = {BASELINE, PAPER, *sorted(means, key=lambda name: (-means[name], name))[:5]}
    return [row for row in own if row.setting in names and row.level is not None]


STUDY = Study(
    params=ProtocolParams,
    run=run,
    title="All methods under one protocol",
    question="The measures of EffiVLM-Bench (arXiv 2506.00479) for every method and control, with budgets that are "
    "shares of each prompt, all at the bytes that are really held. Performance is accuracy over the full cache's, "
    "generalisation its standard deviation over tasks, loyalty the agreement with the full cache's answers.",
    conclusion=conclusion,
    headline=lambda row: False,
    level="share of the prompt",
    drawn=drawn,
    tables=tables,
    columns=("steady",),
)
