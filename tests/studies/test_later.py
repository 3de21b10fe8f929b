"""The cut between what is compressed and what comes later."""

from __future__ import annotations

import pytest

from sparsemm.datasets.synthetic import PageStyle, draw_record, questions
from sparsemm.errors import DataError
from sparsemm.evaluate.questions import Question
from sparsemm.studies.common.cut_prompts import (
    IMAGE,
    KNOWN,
    NEUTRAL,
    TURN,
    cut_batches,
    prompt_parts,
    tokens_after,
)

RECORDS = [draw_record("evaluation", 0, i, PageStyle(1, 6, (3, 6))) for i in range(5)]
FAMILIES = ("tiny-llava-next-vicuna", "tiny-llava-next-mistral", "tiny-qwen2-vl")


def asked(record):
    question = questions(record)[-1]
    return Question(question.prompt, lambda: [record.image], answer=question.answer)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("condition", [KNOWN, IMAGE, NEUTRAL, TURN])
def test_the_question_is_behind_the_cut_and_all_else_before_it(tiny, name, condition):
    _, processor = tiny(name)
    prompts = [prompt_parts(processor, condition, asked(r), r, "Read the page.") for r in RECORDS]
    seen = []
    for batch in cut_batches(processor, prompts, RECORDS, 2):
        assert len(batch.index) <= 2
        for row, i in enumerate(batch.index):
            ids = batch.inputs["input_ids"][row].tolist()
            before, after = (processor.tokenizer.decode(part) for part in (ids[: batch.cut], ids[batch.cut :]))
            prompt = asked(RECORDS[i]).prompt
            if condition == KNOWN:
                assert batch.cut is None and prompt in before
                continue
            assert prompt in after and prompt not in before and "\n" not in prompt
            assert ("Read the page." in before) == (condition == NEUTRAL)
            other = questions(RECORDS[i])[0]
            assert (other.prompt in before) == (condition == TURN) and (other.answer in after) >= (condition == TURN)
        seen += batch.index
    assert sorted(seen) == list(range(len(RECORDS)))


def test_known_and_after_the_page_are_the_same_prompt(tiny):
    _, processor = tiny("tiny-qwen2-vl")
    known, image = (prompt_parts(processor, c, asked(RECORDS[0]), RECORDS[0], "n") for c in (KNOWN, IMAGE))
    assert known[0] == known[1] == image[0] and image[0].startswith(image[1])
    assert tokens_after(processor, RECORDS[0], *known) == 0


def test_a_page_with_one_question_has_no_other_turn(tiny):
    record = next(
        r for i in range(99) if len((r := draw_record("evaluation", 0, i, PageStyle(1, 6, (1, 2)))).entries) == 2
    )
    with pytest.raises(DataError, match="only one question"):
        prompt_parts(tiny("tiny-qwen2-vl")[1], TURN, asked(record), record, "n")
