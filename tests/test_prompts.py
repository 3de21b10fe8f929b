"""Prompts of the small processors."""

from __future__ import annotations

import copy

import pytest
import torch
from PIL import Image

from sparsemm.errors import AlignError, DataError
from sparsemm.prompts import append_answers, build_inputs, by_length
from tests.families import MODELS, made

NAMES = ("tiny-llava-next-vicuna", "tiny-llava-next-mistral", "tiny-qwen2-vl")


@pytest.mark.parametrize("name", MODELS)
def test_left_padding_keeps_each_rows_own_prompt(name):
    _, processor = made(name)
    one, other, third = (Image.new("RGB", size) for size in ((84, 84), (168, 84), (60, 120)))
    images = [[], [one], [other, third], [third]]
    texts = ["Read", "Read the page.", "What is sun?", "Read"]
    together = build_inputs(processor, images, texts)
    assert together["input_ids"].shape[0] == 4 and (together["attention_mask"][:, -1] == 1).all()
    for row in range(4):
        alone = build_inputs(processor, [images[row]], [texts[row]])["input_ids"][0]
        kept = together["input_ids"][row][together["attention_mask"][row].bool()]
        assert kept.tolist() == alone.tolist()


@pytest.mark.parametrize("name", NAMES)
def test_there_is_one_start_token(tiny, name):
    _, processor = tiny(name)
    ids = build_inputs(processor, [[]], ["Read"])["input_ids"][0].tolist()
    assert ids.count(processor.tokenizer.bos_token_id) == (0 if name == "tiny-qwen2-vl" else 1)


def test_rows_that_do_not_fit_are_refused(tiny):
    _, processor = tiny(NAMES[0])
    for images, texts in (([], []), ([[]], ["a", "b"])):
        with pytest.raises(DataError, match="texts"):
            build_inputs(processor, images, texts)


def test_a_template_may_be_the_tokenizers_and_without_one_it_is_said_so(tiny):
    processor = copy.deepcopy(tiny(NAMES[0])[1])
    image = [[Image.new("RGB", (84, 84))]]
    want = build_inputs(processor, image, ["Read"])["input_ids"]
    processor.tokenizer.chat_template, processor.chat_template = processor.chat_template, None
    assert build_inputs(processor, image, ["Read"])["input_ids"].tolist() == want.tolist()
    processor.tokenizer.chat_template = None
    with pytest.raises(DataError, match="no chat template.*chat_template.jinja"):
        build_inputs(processor, image, ["Read"])


def test_batches_of_like_length_hold_all_samples_and_little_padding() -> None:
    lengths = [9, 100, 10, 10, 95, 96, 97, 3]
    assert by_length(lengths, 3) == [[7, 0, 2], [3, 4, 5], [6, 1]]
    batches = by_length(lengths, 3, 0.05)
    assert batches == [[7], [0, 2, 3], [4, 5, 6], [1]]
    assert by_length([], 3, 0.05) == [] and by_length([5, 5], 1, 0.0) == [[0], [1]]


def test_answers_are_appended_and_padded_on_the_left():
    ids = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    types = torch.tensor([[0, 0, 1, 0], [0, 1, 1, 0]])
    prompts = {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": types, "pixel_values": torch.ones(2)}
    prompts["token_type_ids"] = types
    batch = append_answers(prompts, [[1, 2, 3], []], 99)
    assert batch.inputs["input_ids"].tolist() == [[5, 6, 1, 2, 3], [99, 7, 8, 9, 10]]
    assert batch.inputs["attention_mask"].tolist() == [[1] * 5, [0, 1, 1, 1, 1]]
    for name in ("mm_token_type_ids", "token_type_ids"):
        assert batch.inputs[name].tolist() == [[1, 0, 0, 0, 0], [0, 0, 1, 1, 0]]
    assert batch.first_rows == [1, 4]
    assert batch.inputs["pixel_values"] is prompts["pixel_values"]
    with pytest.raises(AlignError, match="1 answers for 2"):
        append_answers(prompts, [[1]], 99)
