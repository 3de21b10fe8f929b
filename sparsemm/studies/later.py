"""Study: the question comes after the cache was compressed, so a method cannot know what will be asked."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import Field

from sparsemm.errors import DataError
from sparsemm.evaluate.rows import Arm, Outcome, Row, by_method
from sparsemm.params.studies import Budgets, Methods, PagesParams, no_questions
from sparsemm.policies import METHODS, budgets_of
from sparsemm.studies import Rows, Study, against_each, sentence

if TYPE_CHECKING:
    from sparsemm.datasets.records import Record
    from sparsemm.evaluate.answers import Batch
    from sparsemm.evaluate.questions import Question
    from sparsemm.params import Params
    from sparsemm.studies.common.experiment import Experiment

KNOWN, IMAGE = "question known", "compressed after the page"
NEUTRAL, TURN = "compressed after a neutral prompt", "compressed after another question"


class LaterParams(PagesParams):
    """The methods and budgets that are compared; the questions need synthetic pages."""

    methods: Methods
    budgets: Budgets
    neutral: str = Field("Read the page.", min_length=1, description="what the cache is compressed after")

    def problem(self, params: Params) -> str | None:
        """Returns what does not fit the other parts of params.yaml, or None."""
        return no_questions(params) or super().problem(params)


def prompt_parts(processor: Any, condition: str, question: Question, record: Record, neutral: str) -> tuple[str, str]:
    """Returns the whole prompt, and the part of it after which the cache is compressed.

    `KNOWN` and `IMAGE` are the same prompt. `NEUTRAL` puts `neutral` before the question. `TURN` asks another question
    about the page first and gives its reference answer; the question then is a second turn.

    Raises:
        DataError: if the page has no other question.
    """
    text = f"{neutral} {question.prompt}" if condition == NEUTRAL else question.prompt
    parts = [{"type": "image"}]
    if condition != TURN:
        whole = _chat_text(processor, [("user", [*parts, {"type": "text", "text": text}])])
        return whole, whole if condition == KNOWN else whole[: whole.rindex(question.prompt)]
    from sparsemm.datasets.synthetic import questions

    other = next((q for q in questions(record) if q.prompt != question.prompt), None)
    if other is None:
        raise DataError("there is only one question to ask about the page", where=f"record {record.id!r}")
    first = ("user", [*parts, {"type": "text", "text": other.prompt}])
    turns = [first, ("assistant", [{"type": "text", "text": other.answer}]), ("user", [{"type": "text", "text": text}])]
    return _chat_text(processor, turns), _chat_text(processor, [first])


def _chat_text(processor: Any, turns: list[tuple[str, list[dict[str, Any]]]]) -> str:
    messages = [{"role": role, "content": content} for role, content in turns]
    return str(processor.apply_chat_template(messages, add_generation_prompt=True))


def tokens_after(processor: Any, record: Record, whole: str, before: str) -> int:
    """Counts the tokens of a prompt after its part `before`; a token on both sides of the border counts too."""
    from sparsemm.prompts import encode

    ids, part = (encode(processor, [[record.image]], [text])["input_ids"][0].tolist() for text in (whole, before))
    same = next(
        (i for i, pair in enumerate(zip(ids, part, strict=False)) if pair[0] != pair[1]), min(len(ids), len(part))
    )
    return len(ids) - same


def cut_batches(processor: Any, prompts: list[tuple[str, str]], records: list[Record], size: int) -> Iterator[Batch]:
    """Yields batches of prompts with equally many tokens after the cut, so that all rows are cut at one column."""
    from sparsemm.evaluate.answers import Batch
    from sparsemm.prompts import encode

    tails = [tokens_after(processor, record, *texts) for record, texts in zip(records, prompts, strict=True)]
    for tail in sorted(set(tails)):
        alike = sorted((i for i, n in enumerate(tails) if n == tail), key=lambda i: (records[i].image.size, i))
        for start in range(0, len(alike), size):
            index = alike[start : start + size]
            inputs = encode(processor, [[records[i].image] for i in index], [prompts[i][0] for i in index])
            yield Batch(index, inputs, inputs["input_ids"].shape[1] - tail if tail else None)


def conclusion(rows: Rows) -> str:
    """Compares sparsemm with other methods if the cache is compressed before the question is known."""
    own = [row for row in rows if row.of_sparsemm and row.condition in (IMAGE, NEUTRAL, TURN)]
    others = dict.fromkeys(row.against for row in own if row.against in METHODS)
    return sentence("Compressed before the question is known, sparsemm is, against ", against_each(own, others))


def run(experiment: Experiment, options: LaterParams) -> list[Row]:
    """Returns one row per condition, method, budget and comparison: with the full cache, with sparsemm, with `KNOWN`.

    The full cache shows what a condition's wording alone costs.
    """
    variants = {
        (method, budget): experiment.variant(method, budget)
        for method in options.methods
        for budget in budgets_of(method, options.budgets)
    }
    outcomes: dict[Arm, Outcome] = {}
    for condition in (KNOWN, IMAGE, NEUTRAL, TURN):
        arms = {Arm("qa", condition, method, None, budget): one for (method, budget), one in variants.items()}
        outcomes |= experiment.measure(arms, make_batches=partial(_batches, experiment, condition, options.neutral))

    def against(arm: Arm) -> list[Arm]:
        return by_method(arm) + ([arm._replace(condition=KNOWN)] if arm.condition == IMAGE else [])

    return experiment.rows(outcomes, against)


def _batches(experiment: Experiment, condition: str, neutral: str) -> Iterator[Batch]:
    pairs = zip(experiment.task("qa").questions, experiment.records, strict=True)
    prompts = [prompt_parts(experiment.processor, condition, question, record, neutral) for question, record in pairs]
    return cut_batches(experiment.processor, prompts, experiment.records, experiment.params.evaluate.batch_size)


STUDY = Study(
    params=LaterParams,
    run=run,
    title="When the question comes later",
    question="A method that watches the question keeps what it needs. Here the cache is compressed before the question"
    " is there: after the page, after a neutral prompt, or after another question about the page (a second "
    "turn). The full cache shows what the wording alone costs.",
    conclusion=conclusion,
    headline=lambda row: row.of_sparsemm and row.condition == IMAGE and row.against in METHODS,
)
