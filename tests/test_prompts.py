"""Prompts of the small processors."""

from __future__ import annotations

import pytest
from PIL import Image

from sparsemm.errors import DataError
from sparsemm.prompts import build_inputs

NAMES = ("tiny-llava-next-vicuna", "tiny-llava-next-mistral", "tiny-qwen2-vl")


@pytest.mark.parametrize("name", NAMES)
def test_left_padding_keeps_each_rows_own_prompt(tiny, name):
    _, processor = tiny(name)
    images = [[Image.new("RGB", (84, 84))], [Image.new("RGB", (168, 84))], []]
    texts = ["Read the page.", "What is sun?", "Read"]
    together = build_inputs(processor, images, texts)
    assert together["input_ids"].shape[0] == 3 and (together["attention_mask"][:, -1] == 1).all()
    for row in range(3):
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
