"""Replays: the attention of an answer in plain loops, what another prompt has of it, and caches filled by it."""

from __future__ import annotations

import pytest
import torch

import sparsemm
from sparsemm.cache.prefill import prefill
from sparsemm.cache.replay import answer_attention, replay_attention
from sparsemm.datasets.synthetic import PageStyle, draw_record
from sparsemm.errors import CacheError
from sparsemm.prompts import build_inputs
from tests.cache.test_device import prompt
from tests.cache.test_prefill import same_bits
from tests.cache.test_selectors import POLICIES, padded, same

NAMES = ("tiny-qwen2-vl", "tiny-llava-next-vicuna")
B, W = 9, 4
FIRST = torch.finfo(torch.float32).max


def drawn(lab, tokens, seed=0):
    """A replay of random numbers for these prompts."""
    generator = torch.Generator().manual_seed(seed)
    size = (len(tokens), lab.shape[2], tokens.shape[1])
    return [torch.rand(size, generator=generator, dtype=torch.float32) for _ in range(lab.shape[0])]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows", [1, 3])
def test_it_is_the_largest_attention_of_the_rows_that_predict_the_answer(tiny, monkeypatch, name, rows):
    model, processor = tiny(name)
    pages = [draw_record("evaluation", 1, i, PageStyle(1 + i % 2, 6)) for i in range(3)]
    answers = [processor.tokenizer(text, add_special_tokens=False).input_ids for text in ("hut of fee", "", "date")]
    assert len(answers[0]) > len(answers[2]) > len(answers[1]) == 0
    inputs = build_inputs(processor, [[page.image] for page in pages], ["Read the page.", "What?", "Read the page."])
    worth = answer_attention(model, inputs, answers, 0, rows)
    kind = model.config.get_text_config()._attn_implementation
    for row, (page, answer) in enumerate(zip(pages, answers, strict=True)):
        text = ["Read the page.", "What?", "Read the page."][row]
        alone = build_inputs(processor, [[page.image]], [text])
        length = alone["input_ids"].shape[1]
        added = torch.tensor([answer], dtype=torch.int64)
        whole = {key: value for key, value in alone.items() if key not in ("input_ids", "attention_mask")}
        for key in ("mm_token_type_ids", "token_type_ids"):
            if key in whole:
                whole[key] = torch.cat([whole[key], torch.zeros_like(added)], dim=1)
        ids = torch.cat([alone["input_ids"], added], dim=1)
        model.set_attn_implementation("eager")
        monkeypatch.setattr(model.config, "_attn_implementation", "eager")
        with torch.no_grad():
            out = model(input_ids=ids, attention_mask=torch.ones_like(ids), **whole, output_attentions=True)
        model.set_attn_implementation(kind)
        for layer, weights in zip(worth, out.attentions, strict=True):
            heads = layer.shape[1]
            for kv in range(heads):
                group = weights[0].unflatten(0, (heads, -1))[kv]  # (G, T, T)
                want = torch.stack(
                    [group[:, i, :length].amax(0) for i in range(length - rows, length + len(answer))]
                ).amax(0)
                padding = layer.shape[2] - length
                torch.testing.assert_close(layer[row, kv, padding:], want, rtol=2e-3, atol=2e-5)
                assert not layer[row, kv, :padding].any()


@pytest.mark.parametrize("name", NAMES)
def test_the_model_reads_its_own_greedy_answer(tiny, name):
    model, processor = tiny(name)
    reading = prompt(processor)
    out = model.generate(**reading, do_sample=False, max_new_tokens=12)[:, reading["input_ids"].shape[1] :].tolist()
    ends = {model.generation_config.eos_token_id, processor.tokenizer.pad_token_id}
    answers = [row[: next((i for i, token in enumerate(row) if token in ends), len(row))] for row in out]
    assert all(answers)
    worth = replay_attention(model, reading, 12)
    for one, want, same_prompt in zip(
        worth,
        answer_attention(model, reading, answers, processor.tokenizer.pad_token_id),
        replay_attention(model, reading, 12, reading),
        strict=True,
    ):
        assert torch.equal(one, want) and torch.equal(one, same_prompt)


@pytest.mark.parametrize("name", NAMES)
def test_another_question_has_the_worth_of_what_it_shares(tiny, name):
    model, processor = tiny(name)
    images = [
        [draw_record("evaluation", 1, i, style).image] for i, style in enumerate((PageStyle(1, 6), PageStyle(2, 6)))
    ]
    reading = build_inputs(processor, images, ["Read the page."] * 2)
    question = build_inputs(processor, images, ["What is the date on this page?", "What?"])
    worth, carried = replay_attention(model, reading, 8), replay_attention(model, reading, 8, question)
    for one, other in zip(worth, carried, strict=True):
        assert other.shape[2] == question["input_ids"].shape[1]
        for row in range(2):
            real = [batch["attention_mask"][row].bool() for batch in (reading, question)]
            ids = [
                batch["input_ids"][row][mask].tolist() for batch, mask in zip((reading, question), real, strict=True)
            ]
            shared = next(i for i, (a, b) in enumerate(zip(*ids, strict=False)) if a != b)
            image = max(i for i, token in enumerate(ids[1]) if token == model.config.image_token_id)
            assert image < shared < len(ids[1])
            assert torch.equal(other[row][:, real[1]][:, :shared], one[row][:, real[0]][:, :shared])
            assert (other[row][:, real[1]][:, shared:] == FIRST).all()
            assert not other[row][:, ~real[1]].any()


def test_other_pages_are_refused(tiny):
    model, processor = tiny("tiny-qwen2-vl")
    reading = prompt(processor)
    text = processor.tokenizer(["hut"] * 2, return_tensors="pt", padding=True)
    replay_attention(model, reading, 2, text)  # a prompt without an image shares nothing that it would need
    other = {name: value.clone() for name, value in reading.items()}
    other["input_ids"][1, int(other["attention_mask"][1].argmax())] = text["input_ids"][0, 0]
    with pytest.raises(CacheError, match=r"row 1 does not begin as what was read.*same images"):
        replay_attention(model, reading, 2, other)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_keeps_what_the_replay_says_and_its_budget(lab, policy):
    tokens, mask = padded(lab)
    replay = drawn(lab, tokens)
    cache = lab.cache(f"{policy}+kvzip", B, replay=replay)
    lab.run(cache, tokens, mask)
    assert torch.stack(cache.budgets()).sum(dim=(0, 2)).tolist() == [lab.heads * B] * 2
    whole = lab.cache("full", replay=replay)  # others ignore it
    lab.run(whole, tokens, mask)
    for layer, every, worth in zip(cache.ragged, whole.ragged, replay, strict=True):
        for number, (start, count) in enumerate(
            zip(layer.slab.starts.tolist(), layer.slab.lengths.tolist(), strict=True)
        ):
            row, head = divmod(number, lab.shape[2])
            pad = 30 - int(mask[row].sum())
            best = worth[row, head, pad : 30 - W].argsort(descending=True)[: count - W].sort().values.tolist()
            rows = int(every.slab.starts[number]) + torch.tensor(best + list(range(30 - W - pad, 30 - pad)))
            assert torch.equal(layer.slab.keys[start : start + count], every.slab.keys[rows])


def test_padding_chunks_shared_prefills_and_8_bits_change_nothing(lab):
    tokens, mask = padded(lab)
    replay = drawn(lab, tokens)
    whole, chunked, small, alone = (
        lab.cache("adakv+kvzip", B, **({"replay": replay} | options))
        for options in ({}, {"prompt_length": 30}, {"storage": "int8"}, {"replay": [r[1:, :, 7:] for r in replay]})
    )
    lab.run(whole, tokens, mask)
    for start, stop in ((0, 13), (13, 15), (15, 30)):
        lab.run(chunked, tokens[:, start:stop], mask[:, :stop])
    same(chunked, whole, tolerance=1e-4)
    start = prefill(lab.model, {"input_ids": tokens, "attention_mask": mask}, W)
    same(start.compress("adakv+kvzip", B, window=W, replay=replay), whole, tolerance=1e-4)
    lab.run(small, tokens, mask)
    assert [slots.tolist() for slots in small.budgets()] == [slots.tolist() for slots in whole.budgets()]
    lab.run(alone, tokens[1:, 7:])
    whole.batch_select_indices(torch.tensor([1]))
    same(whole, alone, tolerance=1e-4)


def test_rows_that_leave_between_chunks_take_their_replay_along(lab):
    tokens, mask = padded(lab)
    replay = drawn(lab, tokens)
    cache, want = (lab.cache("snapkv+kvzip", B, replay=replay, prompt_length=30) for _ in range(2))
    for one in (cache, want):
        lab.run(one, tokens[:, :13], mask[:, :13])
    cache.batch_select_indices(torch.tensor([1]))
    lab.run(cache, tokens[1:, 13:], mask[1:])
    lab.run(want, tokens[:, 13:], mask)
    want.batch_select_indices(torch.tensor([1]))
    same(cache, want, tolerance=1e-4)


def test_an_answer_that_is_held_to_the_budget_adds_its_rows(lab):
    tokens, _ = padded(lab)
    cache = lab.cache("sparsemm+kvzip", B, replay=drawn(lab, tokens), hold_budget=True)
    lab.generate(tokens, cache, 12)
    assert cache.kept_slots().tolist() == [lab.heads * B] * 2
    with pytest.raises(CacheError, match="rates no later turns"):
        lab.cache("sparsemm+kvzip", B, replay=drawn(lab, tokens), recompress=True)


def test_no_replay_and_that_of_another_prompt_are_refused(lab):
    tokens, mask = padded(lab)
    for replay in (None, drawn(lab, tokens)[:3]):
        with pytest.raises(CacheError, match=r"KVzip needs a replay of the prompt in 4 layers.*replay_attention"):
            lab.cache("snapkv+kvzip", B, replay=replay)
    for other in (tokens[:1], tokens[:, :20]):
        with pytest.raises(CacheError, match=r"the replay has shape .*the prompt has 2 rows, 3 KV heads and 30 tokens"):
            lab.run(lab.cache("snapkv+kvzip", B, replay=drawn(lab, other)), tokens, mask)
    cache = lab.cache("snapkv+kvzip", B, replay=drawn(lab, tokens))
    lab.run(cache, tokens, mask)
    cache.reset()
    with pytest.raises(CacheError, match="and a new cache"):
        lab.run(cache, tokens, mask)


def test_a_replay_of_the_prompt_serves_generate(tiny):
    model, processor = tiny("tiny-qwen2-vl")
    inputs = prompt(processor)
    replay = replay_attention(model, inputs, 8)
    one, other = (sparsemm.compressed_cache(model, "snapkv+kvzip", 16, window=W, replay=replay) for _ in range(2))
    model.generate(**inputs, past_key_values=one, do_sample=False, max_new_tokens=1)
    prefill(model, inputs, cache=other)
    same_bits(one, other)
