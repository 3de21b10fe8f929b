"""Measures methods on some of the pages: the evaluator with the questions of a scenario."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sparsemm.datasets.records import Record, read_records
from sparsemm.errors import DataError, PromptTooLong
from sparsemm.evaluate.answers import Batch, Variant, make_batch
from sparsemm.evaluate.evaluator import Evaluator
from sparsemm.evaluate.rows import AREA, OVERALL, Arm, Outcome
from sparsemm.evaluate.tasks.pages import PageTask
from sparsemm.params import Params
from sparsemm.policies import budgets_of, selector_of
from sparsemm.statistics import area
from sparsemm.studies.common.cut_prompts import IMAGE, cut_batches, prompt_parts
from sparsemm.tune.candidates import Candidate

Outcomes = dict[Arm, Outcome]  # the setting of an arm is the name of a candidate


class Rereading(NamedTuple):
    """What it costs to read a page again, which a selector such as `kvzip` needs; a mean over some pages.

    Attributes:
        work: tokens that the language model runs before the first token of an answer, over those of the prompt.
        seconds: of one reading, without the prompt's own prefill and with one page at a time.
    """

    work: float
    seconds: float


def reads_again(method: str) -> bool:
    """Tells whether a method needs each page read again: a whole answer over the full cache, and two more prefills."""
    return "replay" in selector_of(method).reads


class Tuner(Evaluator):
    """The evaluator of one model's tuning.

    Attributes:
        options: the part `tune` of params.yaml.
        records: pages: those of the search, then those of the confirmation.
        usual: the options of `allocate`, which methods have unless a candidate says otherwise.

    Raises:
        DataError: if the evaluation pages are missing, or fewer than `tune.samples`.
        ScoreTableError: if the model has no score table.
    """

    def __init__(self, params: Params, key: str, root: Path) -> None:
        assert params.tune is not None
        self.options, allocate = params.tune, params.allocate
        self.pages = root / "artifacts" / "datasets" / f"{params.evaluate.dataset}.parquet"
        self.records: list[Record] = read_records(self.pages, limit=self.options.samples)
        if len(self.records) < self.options.samples:
            what = f"{len(self.records)} records, {self.options.samples} wanted"
            raise DataError(what, where=str(self.pages), hint="lower tune.samples")
        self.usual = {"window": allocate.window, "rho": allocate.rho, "power": 1.0, "mode": allocate.mode}
        known = [params.evaluate.model_dump(exclude={"tasks", "methods"}), self.options.tasks]
        super().__init__(params, key, root, "tune", self.usual, [self.pages], known, __name__)

    @property
    def searched(self) -> int:
        """Number of pages of the search, two thirds; the others are those of the confirmation."""
        return 2 * self.options.samples // 3

    def tasks(self, scenario: str) -> tuple[str, ...]:
        """Returns what is asked: later, questions; for long answers, to read; else, or without that task, all tasks."""
        only = {"later": "qa", "long": "read"}.get(scenario)
        return tuple(task for task in self.options.tasks if task == only) or self.options.tasks

    def generations(self, scenario: str, candidates: Sequence[Candidate], pages: int) -> int:
        """Returns how many answers it takes to measure candidates on so many pages."""
        variants = sum(len(budgets_of(one.method, self.options.budgets)) for one in candidates)
        return variants * pages * len(self.tasks(scenario))

    def rereadings(self, scenario: str, candidates: Sequence[Candidate], pages: int) -> int:
        """Returns how many pages are read again to measure candidates on so many pages: once for all candidates."""
        return pages * len(self.tasks(scenario)) if any(reads_again(one.method) for one in candidates) else 0

    def rereading(self, scenario: str) -> Rereading:
        """Reads the first pages again, and returns the cost, which is kept for a run that is resumed.

        Raises:
            SparseMMError: if the model cannot read a page again.
        """
        return Rereading(*self.store.once(f"rereading, {scenario}", partial(self._read_again, scenario)))

    def _read_again(self, scenario: str) -> Rereading:
        pages = range(min(self.options.first, self.searched))
        batches: list[Batch] = []
        for task in self.tasks(scenario):
            questions = self._questions(task, 0, len(pages))
            alone = (make_batch(self.processor, questions.questions, [page], self.reading) for page in pages)
            batches += self._later(questions, 1) if scenario == "later" else alone
        tokens: list[int] = []
        hook = self.model.register_forward_pre_hook(
            lambda _, __, inputs: tokens.append(inputs["input_ids"].numel()), with_kwargs=True
        )
        begin = time.perf_counter()
        try:
            for batch in batches:
                assert batch.replay is not None
                batch.replay(self.model)
        finally:
            hook.remove()
        seconds = (time.perf_counter() - begin) / len(batches)
        prompts = sum(batch.inputs["input_ids"].numel() for batch in batches)
        return Rereading(round((prompts + sum(tokens)) / prompts, 4), seconds)

    def measure(self, scenario: str, candidates: Sequence[Candidate], start: int, stop: int) -> Outcomes:
        """Returns the outcomes of candidates on the pages from `start` to `stop`, by task and budget.

        The names of candidates are the settings of the arms. Answers that are in the store are not asked for again.

        Raises:
            BudgetError, CacheError: if a candidate cannot serve this model.
            DataError: if a page cannot be asked about.
        """
        outcomes: Outcomes = {}
        for task in self.tasks(scenario):
            name = f"{scenario}, {task}, pages {start} to {stop - 1}"  # batches depend on which pages there are
            questions = self._questions(task, start, stop)
            variants: dict[Arm, Variant] = {
                Arm(name, "", one.name, None, budget): self.variant(
                    one.method, budget, hold_budget=scenario == "long" and budget is not None, **one.options
                )
                for one in candidates
                for budget in budgets_of(one.method, self.options.budgets)
            }
            make_batches: Callable[[], Iterator[Batch]] | None = None
            if scenario == "later":
                make_batches = partial(self._later, questions, self.params.evaluate.batch_size)
            measured = self.outcomes({name: questions}, variants, make_batches=make_batches)
            if reasons := [self.refused[arm] for arm in variants if arm in self.refused]:
                raise PromptTooLong(reasons[0])
            outcomes |= {arm._replace(task=task): outcome for arm, outcome in measured.items()}
        return outcomes

    def _questions(self, task: str, start: int, stop: int) -> PageTask:
        return PageTask(task, self.records[start:stop], self.params.chase.prompt, self.params.evaluate.seed)

    def _later(self, task: PageTask, size: int) -> Iterator[Batch]:
        """Yields batches whose prompts are compressed before the question."""
        pairs = zip(task.questions, task.records, strict=True)
        prompts = [prompt_parts(self.processor, IMAGE, question, record, "") for question, record in pairs]
        return cut_batches(self.processor, prompts, list(task.records), size, self.reading)


def joined(parts: Sequence[Outcomes]) -> Outcomes:
    """Returns the outcomes of the same arms on several pages as one, page after page."""
    outcomes: Outcomes = {}
    for arm in parts[0]:
        own = [part[arm] for part in parts]
        weights = [len(one.values) for one in own]
        kept = [one.kept for one in own if one.kept is not None]
        size = [one.bytes for one in own if one.bytes is not None]
        outcomes[arm] = Outcome(
            np.concatenate([one.values for one in own]),
            own[0].metric,
            float(np.average(kept, weights=weights)) if kept else None,
            float(np.average(size, weights=weights)) if size else None,
        )
    return outcomes


def with_means(outcomes: Mapping[Arm, Outcome]) -> Outcomes:
    """Returns the outcomes, and for each setting the area over its budgets in each task, and the mean of these."""
    result: Outcomes = dict(outcomes)
    tasks = list(dict.fromkeys(arm.task for arm in outcomes))
    for setting in dict.fromkeys(arm.setting for arm in outcomes):
        areas = []
        for task in tasks:
            curve = {arm.budget: one for arm, one in outcomes.items() if (arm.task, arm.setting) == (task, setting)}
            if None in curve:  # the full cache
                values = curve[None].values
            else:
                budgets = sorted(budget for budget in curve if budget is not None)
                values = area(np.stack([curve[budget].values for budget in budgets]), budgets)
            areas.append(values)
            result[Arm(task, AREA, setting)] = Outcome(values, next(iter(curve.values())).metric)
        result[Arm(OVERALL, AREA, setting)] = Outcome(np.mean(areas, axis=0), "mean over tasks")
    return result
