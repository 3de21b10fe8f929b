"""Conversations with M-RoPE that take turns on one model."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest
import torch
from torch.nn.functional import pad
from transformers import DynamicCache

import sparsemm
from sparsemm.datasets.synthetic import PageStyle, draw_record
from sparsemm.prompts import build_inputs
from tests.families import made


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
    assert cache.get_seq_length() and model.model._forward_pre_hooks  # it waits for a forward
    held = weakref.ref(cache.rope)
    del cache
    gc.collect()
    assert held() is None and not model.model._forward_pre_hooks


def between_a_plain_generate(model, processor, cache):
    model.generate(**prompt(processor, 3), do_sample=False, max_new_tokens=2)


def between_another_cache(model, processor, cache):
    model.generate(**prompt(processor, 3), past_key_values=cache_of(model), do_sample=False, max_new_tokens=2)


def between_another_batch_size(model, processor, cache):
    images = [[draw_record("evaluation", 1, i, PageStyle(1, 6)).image for i in range(n)] for n in (3, 1, 2)]
    model.generate(**build_inputs(processor, images, ["Read the page."] * 3), do_sample=False, max_new_tokens=2)


def between_text_only(model, processor, cache):
    model.generate(input_ids=torch.tensor([[5, 6, 7]]), do_sample=False, max_new_tokens=2)


def between_plain_forwards(model, processor, cache):
    step(model, DynamicCache(), prompt(processor, 3))


def between_another_thread(model, processor, cache):
    thread = threading.Thread(target=between_a_plain_generate, args=(model, processor, cache))
    thread.start()
    thread.join()


def between_an_exception_of_another(model, processor, cache):
    def fail(*_):
        raise MemoryError

    hook = model.model.language_model.register_forward_pre_hook(fail)
    with pytest.raises(MemoryError):
        between_a_plain_generate(model, processor, cache)
    hook.remove()


def between_an_exception_of_its_own(model, processor, cache):
    """A turn with new images fails before its first layer; then there is another request."""

    def fail(*_):
        raise MemoryError

    hook = model.model.visual.register_forward_pre_hook(fail)
    ids = torch.cat([torch.full((1, cache.get_seq_length()), 9), prompt(processor, 2)["input_ids"]], dim=1)
    new = prompt(processor, 2)
    types = pad(new["mm_token_type_ids"], (ids.shape[1] - new["input_ids"].shape[1], 0))
    options = {"image_grid_thw": new["image_grid_thw"], "mm_token_type_ids": types}
    with pytest.raises(MemoryError):
        model.generate(input_ids=ids, pixel_values=new["pixel_values"], past_key_values=cache, **options)
    hook.remove()
    between_a_plain_generate(model, processor, cache)


def between_questions(model, processor, cache):
    """Whoever asks a cache for its length is no turn of it."""
    assert cache.get_seq_length()
    between_a_plain_generate(model, processor, cache)


BETWEEN = {name.removeprefix("between_"): one for name, one in list(globals().items()) if name.startswith("between_")}
FAMILIES = ("qwen2-vl", "qwen2.5-vl", "qwen3-vl")


@pytest.mark.parametrize("way", ["generate", "forward"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_runs_between_turns_changes_nothing(family, way):
    model, processor = made(family)
    first = prompt(processor, 1)

    @torch.no_grad()
    def answers(*interruptions):
        cache, logits = cache_of(model), []
        ids = first["input_ids"]
        for turn in range(3):
            inputs = first if turn == 0 else {"input_ids": ids}
            if way == "generate":
                out = model.generate(
                    **inputs, past_key_values=cache, do_sample=False, max_new_tokens=3, min_new_tokens=3,
                    output_logits=True, return_dict_in_generate=True,
                )  # fmt: skip
                logits += out.logits
                ids = pad(out.sequences, (0, 3), value=11)
            else:
                logits.append(step(model, cache, inputs))
                logits.append(step(model, cache, token(9)))
                ids = torch.tensor([[12, 15, 16]])
            for one in interruptions:
                one(model, processor, cache)
        return torch.stack(logits)

    want = answers()
    for name, between in BETWEEN.items():
        assert torch.equal(answers(between), want), name
    assert not torch.allclose(want[-3 if way == "generate" else -2], want[0])


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_of_text_has_no_offsets_of_others(family):
    model, processor = made(family)
    text = {"input_ids": torch.tensor([[5, 6, 7, 8]])}
    model.model.rope_deltas = None
    want = [*conversation(model, cache_of(model), text)]
    cache = cache_of(model)
    assert cache.get_seq_length() == 0
    between_a_plain_generate(model, processor, cache)
    assert all(map(torch.equal, conversation(model, cache, text), want))


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_images_of_a_later_turn_count(family):
    """A turn whose positions are given, as new images need; the turn after it goes on from them."""
    model, processor = made(family)
    first, second = prompt(processor, 1), prompt(processor, 2)
    cache, new = cache_of(model), {"do_sample": False, "max_new_tokens": 2, "min_new_tokens": 2}
    out = model.generate(**first, past_key_values=cache, **new)
    between_a_plain_generate(model, processor, cache)
    ids = torch.cat([out, second["input_ids"]], dim=1)
    types = pad(first["mm_token_type_ids"], (0, out.shape[1] - first["input_ids"].shape[1]))
    types = torch.cat([types, second["mm_token_type_ids"]], dim=1)
    grid = torch.cat([first["image_grid_thw"], second["image_grid_thw"]])
    positions, _ = model.model.get_rope_index(ids, image_grid_thw=grid, mm_token_type_ids=types)
    images = {"pixel_values": second["pixel_values"], "image_grid_thw": second["image_grid_thw"]}
    images["mm_token_type_ids"] = types
    out = model.generate(input_ids=ids, position_ids=positions, past_key_values=cache, **images, **new)
    between_a_plain_generate(model, processor, cache)
    given = []
    hook = model.register_forward_pre_hook(lambda _, __, options: given.append(options), with_kwargs=True)
    ids = pad(out, (0, 3), value=11)
    model.generate(input_ids=ids, past_key_values=cache, **new)
    hook.remove()
    positions, _ = model.model.get_rope_index(
        ids, image_grid_thw=grid, mm_token_type_ids=pad(types, (0, ids.shape[1] - types.shape[1]))
    )
    want = positions[:, :, -4:]  # the last token of the answer was not fed yet
    assert torch.equal(given[0]["position_ids"].expand_as(want), want)
