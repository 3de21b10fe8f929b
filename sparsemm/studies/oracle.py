"""Study: what would be read if heads kept the positions that the right answer attends to, and where is the loss?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

from pydantic import Field

from sparsemm.evaluate.rows import FULL, Arm, Outcome, Row
from sparsemm.params.strict import Count
from sparsemm.params.studies import BudgetsParams, Share, no_questions
from sparsemm.studies import Rows, Study, against_each, sentence
from sparsemm.studies.common.cut_prompts import IMAGE, question_batches

if TYPE_CHECKING:
    import torch

    from sparsemm.evaluate.answers import Batch
    from sparsemm.evaluate.questions import Question
    from sparsemm.params import Params
    from sparsemm.studies.common.experiment import Experiment

ORACLE, REPLAY = "oracle", "kvzip"
SELECTORS = ("snapkv", "blend-echo", REPLAY)  # as published, the best that needs no replay, and with a replay
UNIFORM, LATER = "uniform", "question later"


class OracleParams(BudgetsParams):
    """The splits of the budget under which positions are selected: uniform, and `sparsemm` with each of these rho."""

    rhos: tuple[Share, ...] = Field(min_length=1)
    later: tuple[Count, ...] = Field((), description="budgets with the question behind the compressed page")

    def problem(self, params: Params) -> str | None:
        """Returns what does not fit the other parts of params.yaml, or None."""
        window = params.allocate.window
        if self.later and min(self.later) < window:
            return f"budget {min(self.later)} of later is below allocate.window {window}"
        return (no_questions(params) if self.later else None) or super().problem(params)


def splits(options: OracleParams) -> dict[str, tuple[str, dict[str, Any]]]:
    """Returns the policy and the options of each split of the budget, by the name that rows have."""
    by_score = {f"rho {rho:g}": ("sparsemm", {"rho": rho}) for rho in options.rhos}
    return {UNIFORM: ("snapkv", {})} | by_score


def condition(later: bool, split: str) -> str:
    """Returns the condition of an arm: when the question comes, and how the budget is split."""
    return f"{LATER}, {split}" if later else split


def reference_attention(processor: Any, questions: Sequence[Question], batch: Batch, model: Any) -> list[torch.Tensor]:
    """Returns what the rows of the reference answers attend to, in place of a replay.

    Where a prompt is compressed before its end, the rows of the question count too. Whoever selects by this knows the
    answer, so it is no method: only this study computes it, to compare methods with.
    """
    from sparsemm.cache.replay import answer_attention

    tokenizer = processor.tokenizer
    answers = [tokenizer(questions[at].answer, add_special_tokens=False).input_ids for at in batch.index]
    rows = 1 if batch.cut is None else int(batch.inputs["input_ids"].shape[1]) - batch.cut
    return answer_attention(model, batch.inputs, answers, tokenizer.pad_token_id, rows)


def oracle_batches(experiment: Experiment, task: str, later: bool) -> Iterator[Batch]:
    """Yields the batches of a task, whose replay is that of the reference answers."""
    from sparsemm.evaluate.answers import make_batch
    from sparsemm.evaluate.questions import batches

    questions, size = experiment.task(task).questions, experiment.params.evaluate.batch_size
    if later:
        plain: Iterator[Batch] = question_batches(experiment, IMAGE)
    else:
        plain = (make_batch(experiment.processor, questions, index) for index in batches(questions, size))
    for batch in plain:
        yield replace(batch, replay=partial(reference_attention, experiment.processor, questions, batch))


def conclusion(rows: Rows) -> str:
    """Compares the oracle with the full cache, with every selector, and with itself under other splits."""
    own = [row for row in rows if row.setting == ORACLE and row.verdict]
    parts = [
        f"{task}: {', '.join(against_each([row for row in own if row.task == task]))}"
        for task in dict.fromkeys(row.task for row in own)
    ]
    return sentence("Positions that the right answer attends to, against each other choice, ", parts)


def others(arm: Arm) -> list[Arm]:
    """Returns what an arm is compared with.

    All are compared with the full cache, `kvzip` and the oracle with the selectors before them, and the oracle with
    itself under uniform budgets.
    """
    if arm.setting == FULL:
        return []
    later = arm.condition.startswith(LATER)
    before = {REPLAY: SELECTORS[:-1], ORACLE: SELECTORS}.get(arm.setting, ())
    result = [Arm(arm.task, "", FULL), *(arm._replace(setting=name) for name in before)]
    if arm.setting == ORACLE:
        result.append(arm._replace(condition=condition(later, UNIFORM)))
    return result


def run(experiment: Experiment, options: OracleParams) -> list[Row]:
    """Returns one row per task, split, selector, budget and comparison, with the question in the prompt or later."""
    outcomes: dict[Arm, Outcome] = {}
    asked = [(task, False, options.budgets) for task in options.tasks]
    asked += [("qa", True, options.later)] if options.later else []
    for task, later, budgets in asked:
        # With the whole cache it is the same prompt, wherever it is compressed.
        variants: dict[Arm, Any] = {} if later else {Arm(task, "", FULL): experiment.variant(FULL, None)}
        oracles: dict[Arm, Any] = {}
        for (split, (policy, own)), budget in product(splits(options).items(), budgets):
            arm = Arm(task, condition(later, split), ORACLE, None, budget)
            oracles[arm] = experiment.variant(f"{policy}+{REPLAY}", budget, **own)
            for name in SELECTORS:
                variants[arm._replace(setting=name)] = experiment.variant(f"{policy}+{name}", budget, **own)
        make_batches = partial(question_batches, experiment, IMAGE) if later else None
        outcomes |= experiment.measure(variants, make_batches=make_batches)
        outcomes |= experiment.measure(oracles, make_batches=partial(oracle_batches, experiment, task, later))
    return experiment.rows(outcomes, others)


STUDY = Study(
    params=OracleParams,
    run=run,
    title="What perfect selection would reach",
    question="Every head keeps the positions that the rows of the reference answer attend to most, which no method can "
    "know. Between it and the full cache is what the split of the budget costs; between it and a selector is what "
    "the choice of positions costs.",
    conclusion=conclusion,
    headline=lambda row: row.setting == ORACLE and row.against in SELECTORS,
)
