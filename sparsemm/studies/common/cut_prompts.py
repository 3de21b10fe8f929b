"""Prompts whose cache is compressed before their question: the part before the cut, and batches cut at one column."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from sparsemm.errors import DataError

if TYPE_CHECKING:
    from sparsemm.datasets.records import Record
    from sparsemm.evaluate.answers import Batch, Reading
    from sparsemm.evaluate.questions import Question
    from sparsemm.studies.common.experiment import Experiment

KNOWN, IMAGE = "question known", "compressed after the page"
NEUTRAL, TURN = "compressed after a neutral prompt", "compressed after another question"


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


def cut_batches(
    processor: Any, prompts: list[tuple[str, str]], records: list[Record], size: int, reading: Reading | None = None
) -> Iterator[Batch]:
    """Yields batches of prompts with equally many tokens after the cut, so that all rows are cut at one column.

    Without a `reading`, selectors cannot have a replay.
    """
    from sparsemm.evaluate.answers import Batch
    from sparsemm.prompts import encode

    tails = [tokens_after(processor, record, *texts) for record, texts in zip(records, prompts, strict=True)]
    for tail in sorted(set(tails)):
        alike = sorted((i for i, n in enumerate(tails) if n == tail), key=lambda i: (records[i].image.size, i))
        for start in range(0, len(alike), size):
            index = alike[start : start + size]
            images = [[records[i].image] for i in index]
            inputs = encode(processor, images, [prompts[i][0] for i in index])
            replay = None if reading is None else partial(reading.replay, processor, images, inputs)
            yield Batch(index, inputs, inputs["input_ids"].shape[1] - tail if tail else None, replay)


def question_batches(experiment: Experiment, condition: str, neutral: str = "") -> Iterator[Batch]:
    """Yields the batches of the task `qa` in a condition; `neutral` is for `NEUTRAL` alone."""
    pairs = zip(experiment.task("qa").questions, experiment.records, strict=True)
    prompts = [prompt_parts(experiment.processor, condition, question, record, neutral) for question, record in pairs]
    size = experiment.params.evaluate.batch_size
    return cut_batches(experiment.processor, prompts, experiment.records, size, experiment.reading)
