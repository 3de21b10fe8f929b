"""Where heads look: one forward against the slow oracle, token by token with output_attentions."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from sparsemm.align import align_answer, greedy_answers
from sparsemm.chase.hits import Looked, collect, score
from sparsemm.datasets.synthetic import PageStyle, draw_record
from sparsemm.errors import AlignError
from sparsemm.layouts import box_positions, get_layout
from sparsemm.prompts import build_inputs

NAMES = ("tiny-llava-next-vicuna", "tiny-llava-next-mistral", "tiny-qwen2-vl")
PROMPT = "Read the page."


@lru_cache
def pages():
    styles = (PageStyle(1, 6), PageStyle(2, 6), PageStyle(1, 6, (1, 2)))
    return [draw_record("calibration", 5, i, style) for i, style in enumerate(styles)]


def slow_looks(model, processor, record, answer):
    """Decode the given answer token by token, eager attention returned: (L, Hq, T) most-attended positions."""
    before = model.config.get_text_config()._attn_implementation
    model.set_attn_implementation({"text_config": "eager"})
    inputs = build_inputs(processor, [[record.image]], [PROMPT])
    positions = {}
    looked = []
    try:
        with torch.no_grad():
            cache = DynamicCache()
            out = model(**inputs, past_key_values=cache, use_cache=True, output_attentions=True)
            for step, token in enumerate(answer):
                looked.append(torch.stack([a[0, :, -1].argmax(-1) for a in out.attentions]))
                if "image_grid_thw" in inputs:
                    at = inputs["input_ids"].shape[1] + step + model.model.rope_deltas[0, 0]
                    positions["position_ids"] = at.view(1, 1, 1).expand(3, 1, 1)
                out = model(
                    input_ids=torch.tensor([[token]]),
                    past_key_values=cache,
                    use_cache=True,
                    output_attentions=True,
                    **positions,
                )
    finally:
        model.set_attn_implementation({"text_config": before})
    return torch.stack(looked, dim=-1).numpy()


def answers_for(processor):
    texts = [" ".join(entry.text for entry in record.entries) for record in pages()]
    return [processor.tokenizer(text, add_special_tokens=False).input_ids for text in texts]


@pytest.mark.parametrize("name", NAMES)
def test_one_padded_forward_finds_what_token_by_token_decoding_finds(tiny, name):
    model, processor = tiny(name)
    answers = answers_for(processor)
    inputs = build_inputs(processor, [[r.image] for r in pages()], [PROMPT] * 3)
    got = collect(model, inputs, answers, [range(len(a)) for a in answers], processor.tokenizer.pad_token_id)
    layout = get_layout(model.config.model_type)
    for row, (record, answer) in enumerate(zip(pages(), answers, strict=True)):
        want = slow_looks(model, processor, record, answer)
        alone = build_inputs(processor, [[record.image]], [PROMPT])
        (image,) = layout.image_tokens(model.config, alone, 0, [record.image.size])
        alignment = align_answer(record.id, answer, processor.tokenizer, record.entries, "ordered", "llava_next")
        targets = [np.zeros(0, dtype=np.int64)] * len(answer)
        for token, entry in zip(alignment.token_index, alignment.entry_index, strict=True):
            targets[token] = box_positions(image, record.entries[entry].box)
        expected = score(Looked(want, np.ones(len(answer), dtype=bool)), targets)
        found = score(got[row], targets)
        assert np.array_equal(found[0], expected[0])  # hits, cell by cell
        np.testing.assert_array_equal(found[1], expected[1])
        assert np.array_equal(got[row].positions, want)


@pytest.mark.parametrize("name", NAMES)
def test_rows_say_whether_they_predicted_the_token(tiny, name):
    model, processor = tiny(name)
    (answer,) = greedy_answers(model, processor, pages()[:1], PROMPT, 12)
    if not answer:
        pytest.skip("this untrained model says nothing")
    wrong = [(token + 1) % 50 for token in answer]
    inputs = build_inputs(processor, [[pages()[0].image]], [PROMPT])
    (own,) = collect(model, inputs, [answer], [range(len(answer))], 0)
    (other,) = collect(model, inputs, [wrong], [range(1)], 0)
    assert own.predicted.all() and not other.predicted.any()


def test_only_the_asked_tokens_are_looked_at_and_the_model_gets_its_attention_back(tiny):
    model, processor = tiny(NAMES[0])
    answers = answers_for(processor)[:2]
    inputs = build_inputs(processor, [[r.image] for r in pages()[:2]], [PROMPT] * 2)
    before = model.config.get_text_config()._attn_implementation
    every = collect(model, inputs, answers, [range(len(a)) for a in answers], 0)
    some = collect(model, inputs, answers, [[3, 1], []], 0)
    assert np.array_equal(some[0].positions, every[0].positions[:, :, [3, 1]])
    assert some[1].positions.shape[-1] == 0
    assert model.config.get_text_config()._attn_implementation == before
    with pytest.raises(AlignError, match="row 1"):
        collect(model, inputs, answers, [[0], [len(answers[1])]], 0)


def test_score_counts_hits_and_weighs_them_by_the_region():
    positions = np.array([[[4, 5, 9], [0, 5, 5]]])
    regions = [np.array([4]), np.array([5, 6]), np.zeros(0, dtype=np.int64)]
    hits, weighted = score(Looked(positions, np.ones(3, dtype=bool)), regions)
    assert hits.tolist() == [[2, 1]] and weighted.tolist() == [[1.5, 0.5]]
