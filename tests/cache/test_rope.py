"""Conversations with M-RoPE that take turns on one model."""

from __future__ import annotations

import gc

import pytest
import torch
from torch.nn.functional import pad
from transformers import DynamicCache

import sparsemm
from sparsemm.cache import rope
from sparsemm.datasets.synthetic import PageStyle, draw_record
from sparsemm.prompts import build_inputs


@pytest.fixture
def qwen(tiny):
    return tiny("tiny-qwen2-vl")


def prompt(processor, pages):
    images = [draw_record("evaluation", 1, i, PageStyle(1, 6)).image for i in range(pages)]
    return build_inputs(processor, [images], ["Read the page."])


def cache_of(model):
    return sparsemm.compressed_cache(model, "snapkv", 24, window=4)


@torch.no_grad()
def step(model, cache, inputs):
    return model(**inputs, past_key_values=cache, use_cache=True).logits[:, -1]


def token(number):
    return {"input_ids": torch.tensor([[number]])}


def conversation(model, cache, inputs):
    """Its logits, one part after the other."""
    for part in (inputs, token(9), token(12), {"input_ids": torch.tensor([[15, 16]])}, token(17)):
        yield step(model, cache, part)


def test_steps_of_two_caches_are_those_of_each_alone(qwen):
    model, processor = qwen
    prompts = [prompt(processor, 1), prompt(processor, 3), {"input_ids": torch.tensor([[5, 6, 7]])}]
    alone = [list(conversation(model, cache_of(model), inputs)) for inputs in prompts]
    running = [conversation(model, cache_of(model), inputs) for inputs in prompts]
    together = list(zip(*zip(*running, strict=True), strict=True))
    for mine, other in zip(together, alone, strict=True):
        assert all(map(torch.equal, mine, other))


def turns(model, cache, inputs):
    """Two turns of `generate`, and the positions of every forward."""
    positions = []

    def note(_, __, given):
        positions.append(given["position_ids"])

    for _ in range(2):
        hook = model.register_forward_pre_hook(note, with_kwargs=True)
        out = model.generate(**inputs, past_key_values=cache, do_sample=False, max_new_tokens=2, min_new_tokens=2)
        hook.remove()
        yield positions
        inputs = {"input_ids": pad(out, (0, 3), value=11)}


def test_turns_go_on_at_their_own_positions(qwen):
    model, processor = qwen
    one, three = prompt(processor, 1), prompt(processor, 3)
    model.set_attn_implementation({"text_config": "sdpa"})
    *_, want = turns(model, DynamicCache(), one)
    running = turns(model, cache_of(model), one)
    for _ in range(2):
        got = next(running)
        step(model, cache_of(model), three)  # a forward of its own, with positions of its own
    assert len(got) == 4
    assert all(map(torch.equal, got, want))


def test_rows_keep_theirs(qwen):
    model, processor = qwen
    cache = cache_of(model)
    images = [[draw_record("evaluation", 1, i, PageStyle(1, 6)).image for i in range(n)] for n in (3, 1)]
    both = build_inputs(processor, images, ["Read the page."] * 2)
    step(model, cache, both)
    first = model.model.rope_deltas
    cache.batch_select_indices(torch.tensor([1]))
    cache.batch_repeat_interleave(2)
    step(model, cache_of(model), prompt(processor, 3))
    assert cache.get_seq_length() == both["input_ids"].shape[1]
    assert model.model.rope_deltas.tolist() == first[[1, 1]].tolist()


@pytest.mark.parametrize("way", ["reorder_cache", "batch_select_indices"])
def test_reordered_rows_go_on_at_their_own_positions(qwen, way):
    model, processor = qwen
    images = [[draw_record("evaluation", 1, i, PageStyle(1, 6)).image for i in range(n)] for n in (1, 2)]
    both = build_inputs(processor, images, ["Read the page."] * 2)
    turn = torch.tensor([[9, 12, 15], [16, 17, 18]])
    said = []
    for order in (None, torch.tensor([1, 0])):
        cache, rows = cache_of(model), slice(None)
        step(model, cache, both)
        if order is not None:
            getattr(cache, way)(order)
            rows = order
        ids = torch.cat([both["input_ids"], turn], dim=1)[rows]
        mask = pad(both["attention_mask"], (0, 3), value=1)[rows]
        new = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8}
        said.append(model.generate(input_ids=ids, attention_mask=mask, past_key_values=cache, **new)[rows])
    assert torch.equal(*said)


def test_nothing_is_kept_alive(qwen):
    model, processor = qwen
    cache = cache_of(model)
    step(model, cache, prompt(processor, 1))
    step(model, cache_of(model), prompt(processor, 1))  # the model holds these
    gc.collect()
    before = len(rope._KEPT)
    del cache
    gc.collect()
    assert len(rope._KEPT) == before - 1
