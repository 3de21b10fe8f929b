"""The cache inside `generate`, on the small models."""

from __future__ import annotations

import copy
import io
from functools import lru_cache

import numpy as np
import pytest
import torch
from transformers import DynamicCache

import sparsemm
from sparsemm.datasets.synthetic import PageStyle, draw_record
from sparsemm.errors import BudgetError, CacheError
from sparsemm.prompts import build_inputs
from tests.cache.reading import read_padded
from tests.policies.making import UNTOLD

NAMES = ("tiny-llava-next-vicuna", "tiny-llava-next-mistral", "tiny-qwen2-vl")
WINDOW = 4


@lru_cache
def pages():
    styles = (PageStyle(1, 6), PageStyle(2, 6), PageStyle(1, 6))
    return [draw_record("evaluation", 1, i, style) for i, style in enumerate(styles)]


def inputs_for(processor, rows, question="Read the page."):
    return build_inputs(processor, [[pages()[i].image] for i in rows], [question] * len(rows))


def shape_of(model):
    config = model.config.get_text_config()
    return config.num_hidden_layers, config.num_key_value_heads


def cache_for(model, method, budget, **options):
    scores = np.random.default_rng(3).random(shape_of(model)) ** 4
    return sparsemm.compressed_cache(model, method, budget, scores, **({"window": WINDOW} | options))


def answer(model, inputs, cache, tokens=12, **options):
    with torch.no_grad():
        out = model.generate(**inputs, past_key_values=cache, max_new_tokens=tokens, do_sample=False, **options)
    return out[:, inputs["input_ids"].shape[1] :]


def own(model, inputs, **options):
    """Greedy tokens by transformers' own cache and attention."""
    model.set_attn_implementation({"text_config": "sdpa"})
    return answer(model, inputs, DynamicCache(), **options)


def padded_equal(one, other, pad):
    width = max(one.shape[1], other.shape[1])
    one, other = (torch.nn.functional.pad(t, (0, width - t.shape[1]), value=pad) for t in (one, other))
    return torch.equal(one, other)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows", [(0,), (0, 1, 2)])
def test_full_and_large_budgets_are_token_identical(tiny, name, rows):
    model, processor = tiny(name)
    inputs = inputs_for(processor, rows)
    want = own(model, inputs)
    for method in UNTOLD:
        budget = 1 if method == "full" else inputs["input_ids"].shape[1]
        assert torch.equal(answer(model, inputs, cache_for(model, method, budget)), want), method


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", UNTOLD)
def test_padded_batch_answers_like_batch_one(tiny, name, method):
    model, processor = tiny(name)
    model = copy.deepcopy(model).double()  # in fp32 rounding decides between positions that are rated alike

    def ask(*rows):
        inputs = inputs_for(processor, rows)
        inputs["pixel_values"] = inputs["pixel_values"].double()
        return answer(model, inputs, cache_for(model, method, 20))

    together = ask(0, 1, 2)
    for row in range(3):
        alone = ask(row)
        assert padded_equal(alone, together[row : row + 1], processor.tokenizer.pad_token_id), row


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", [m for m in UNTOLD if m != "full"])
def test_the_bytes_held_are_what_the_budget_says(tiny, name, method):
    model, processor = tiny(name)
    layers, heads = shape_of(model)
    config = model.config.get_text_config()
    cache = cache_for(model, method, 12)
    answer(model, inputs_for(processor, (0, 1)), cache, tokens=4, min_new_tokens=4)
    per_row = layers * heads * (12 + 3)  # the last of the four new tokens is never fed back
    assert cache.kept_slots().tolist() == [per_row, per_row]
    assert [int(s.sum()) for s in torch.stack(cache.budgets()).sum(-1).T] == [layers * heads * 12] * 2
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    assert cache.kept_bytes() == 2 * per_row * 2 * head_dim * 4
    assert cache.kept_bytes() <= cache.slab_bytes() <= cache.kept_bytes() + 2 * layers * heads * 2 * head_dim * 4 * 64


@pytest.mark.parametrize("name", NAMES)
def test_decoding_equals_a_full_cache_with_evicted_positions_hidden(tiny, name):
    """Oracle: transformers' attention over everything, with a mask per head that hides what was evicted."""
    model, processor = tiny(name)
    inputs = inputs_for(processor, (0,))
    cache = cache_for(model, "sparsemm", 16)
    kept = []

    def record(layer, query, key, value, mask, scaling):
        type(layer).compress(layer, query, key, value, mask, scaling)
        keys, _, valid = read_padded(layer.slab)
        same = (key[0][:, :, None] == keys[0][:, None]).all(-1) & valid[0][:, None]
        kept.append(same.any(-1))

    for layer in cache.layers:
        layer.compress = record.__get__(layer)
    with torch.no_grad():
        model(**inputs, past_key_values=cache, use_cache=True)
        new = torch.tensor([[7]])
        positions = {}
        if name == "tiny-qwen2-vl":
            at = inputs["input_ids"].shape[1] + model.model.rope_deltas[0, 0]
            positions["position_ids"] = at.view(1, 1, 1).expand(3, 1, 1)
        got = model(input_ids=new, past_key_values=cache, use_cache=True, **positions).logits[0, -1]

        from transformers import AttentionInterface
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        def hiding(module, query, key, value, attention_mask, **options):
            if query.shape[2] == 1:
                mask = torch.cat([kept[module.layer_idx], torch.ones(len(kept[0]), 1, dtype=torch.bool)], dim=1)
                mask = mask.repeat_interleave(query.shape[1] // mask.shape[0], 0)[None, :, None]
                return sdpa_attention_forward(module, query, key, value, mask, **options)
            return sdpa_attention_forward(module, query, key, value, attention_mask, **options)

        AttentionInterface.register("test_hiding", hiding)
        model.set_attn_implementation({"text_config": "test_hiding"})
        full = DynamicCache()
        model(**inputs, past_key_values=full, use_cache=True)
        want = model(input_ids=new, past_key_values=full, use_cache=True, **positions).logits[0, -1]
    assert sum(int(k.sum()) for k in kept) == shape_of(model)[0] * shape_of(model)[1] * 16
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_second_turn_goes_on_from_the_first(tiny, name):
    model, processor = tiny(name)
    inputs = inputs_for(processor, (0, 1))
    model.set_attn_implementation({"text_config": "sdpa"})
    outcomes = []
    for make in (lambda: DynamicCache(), lambda: cache_for(model, "full", 1)):
        cache = make()
        first = answer(model, inputs, cache, tokens=5, min_new_tokens=5)
        turn = processor.tokenizer(
            ["What is sun?", "Read"], padding=True, return_tensors="pt", add_special_tokens=False
        )
        ids = torch.cat([inputs["input_ids"], first, turn["input_ids"]], dim=1)
        mask = torch.cat([inputs["attention_mask"], torch.ones_like(first), turn["attention_mask"]], dim=1)
        extra = {}
        if "mm_token_type_ids" in inputs:
            types = inputs["mm_token_type_ids"]
            extra["mm_token_type_ids"] = torch.nn.functional.pad(types, (0, ids.shape[1] - types.shape[1]))
            extra["image_grid_thw"] = inputs["image_grid_thw"]
        with torch.no_grad():
            out = model.generate(
                input_ids=ids,
                attention_mask=mask,
                past_key_values=cache,
                max_new_tokens=5,
                min_new_tokens=5,
                do_sample=False,
                **extra,
            )
        outcomes.append(out)
    assert torch.equal(*outcomes)


def test_a_second_turn_keeps_every_new_token(tiny):
    model, processor = tiny(NAMES[0])
    inputs = inputs_for(processor, (0,))
    cache = cache_for(model, "snapkv", 10)
    first = answer(model, inputs, cache, tokens=3, min_new_tokens=3)
    ids = torch.cat([inputs["input_ids"], first, torch.tensor([[5, 6, 7]])], dim=1)
    with torch.no_grad():
        model.generate(input_ids=ids, past_key_values=cache, max_new_tokens=2, min_new_tokens=2, do_sample=False)
    layers, heads = shape_of(model)
    assert cache.kept_slots().tolist() == [layers * heads * (10 + 3 + 3 + 1)]
    assert cache.get_seq_length() == ids.shape[1] + 1


def test_beams_follow_transformers(tiny):
    model, processor = tiny(NAMES[2])
    inputs = inputs_for(processor, (0, 1))
    want = own(model, inputs, num_beams=3)
    assert torch.equal(answer(model, inputs, cache_for(model, "full", 1), num_beams=3), want)


def test_two_caches_on_one_model_do_not_disturb_each_other(tiny):
    model, processor = tiny(NAMES[0])
    inputs = inputs_for(processor, (0,))
    alone = [answer(model, inputs, cache_for(model, m, 12)) for m in ("snapkv", "sparsemm")]
    caches = [cache_for(model, m, 12) for m in ("snapkv", "sparsemm")]
    with torch.no_grad():
        ids = [model(**inputs, past_key_values=c, use_cache=True).logits[:, -1:].argmax(-1) for c in caches]
        said = [[i] for i in ids]
        for _ in range(alone[0].shape[1] - 1):
            for n, cache in enumerate(caches):
                ids[n] = model(input_ids=ids[n], past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
                said[n].append(ids[n])
    for n in range(2):
        got = torch.cat(said[n], dim=1)
        assert torch.equal(got[:, : alone[n].shape[1]], alone[n][:, : got.shape[1]])


@pytest.mark.parametrize("method", UNTOLD)
def test_prompts_of_one_token_and_shorter_than_the_window(tiny, method):
    model, processor = tiny(NAMES[0])
    for length in (1, 2, 3):
        ids = torch.full((1, length), processor.tokenizer.convert_tokens_to_ids("sun"))
        want = own(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        got = answer(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, cache_for(model, method, 8))
        assert torch.equal(got, want)


def test_crop_forgets_new_tokens_but_not_the_compressed_prompt(tiny):
    model, processor = tiny(NAMES[0])
    cache = cache_for(model, "snapkv", 10)
    inputs = inputs_for(processor, (0,))
    with torch.no_grad():
        model(**inputs, past_key_values=cache, use_cache=True)
        before = cache.kept_slots().clone()
        model(input_ids=torch.tensor([[7]]), past_key_values=cache, use_cache=True)
    cache.crop(-1)
    assert torch.equal(cache.kept_slots(), before) and cache.get_seq_length() == inputs["input_ids"].shape[1]
    with pytest.raises(CacheError, match="compressed prompt"):
        cache.crop(-1)


def test_right_padding_is_refused(tiny):
    model, _ = tiny(NAMES[0])
    ids = torch.tensor([[5, 6, 7], [5, 6, 0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    with pytest.raises(CacheError, match="padding"), torch.no_grad():
        model(input_ids=ids, attention_mask=mask, past_key_values=cache_for(model, "full", 1), use_cache=True)


def test_misuse_is_refused(tiny):
    model, _ = tiny(NAMES[0])
    with pytest.raises(BudgetError, match="unknown"):
        sparsemm.compressed_cache(model, "best", 10)
    with pytest.raises(BudgetError, match="window"):
        sparsemm.compressed_cache(model, "snapkv", 10)
    with pytest.raises(BudgetError, match="scores"):
        sparsemm.compressed_cache(model, "sparsemm", 64)
    with pytest.raises(BudgetError, match="shape"):
        sparsemm.compressed_cache(model, "sparsemm", 64, np.ones((6, 5)))
    with pytest.raises(BudgetError, match="odd"):
        sparsemm.compressed_cache(model, "snapkv", 64, pooling_kernel=4)
    with pytest.raises(BudgetError, match="whole"):
        sparsemm.compressed_cache(model, "snapkv", 64.0)
    with pytest.raises(CacheError, match="whole"):
        sparsemm.compressed_cache(model, "snapkv", 64, max_new_tokens=1.5)
    with pytest.raises(BudgetError, match="no numbers"):
        sparsemm.compressed_cache(model, "sparsemm", 64, "scores.safetensors")
    with pytest.raises(CacheError, match="the cache is empty"):
        sparsemm.compressed_cache(model, "snapkv", 64).kept_slots()


def test_slack_is_at_most_a_tenth_from_256_slots_on(lab):
    skewed = np.ones((4, 3))
    skewed[0] = 100
    cache = sparsemm.compressed_cache(lab.model, "sparsemm", 256, skewed, window=32)
    tokens = lab.ids(batch=2, length=1500)
    lab.run(cache, tokens)
    for _ in range(40):
        assert cache.slack_share() <= 0.1
        lab.run(cache, tokens[:, :1])


def test_the_room_of_max_new_tokens_is_for_all_turns(lab):
    tokens = lab.ids()
    cache = lab.cache(max_new_tokens=9, recompress=True)
    lab.run(cache, tokens)
    lab.run(cache, tokens[:, :4])  # compressed again
    cache.batch_repeat_interleave(1)
    cache.reorder_cache(torch.tensor([1, 0]))
    lab.run(cache, tokens[:, :3])
    cache.batch_select_indices(torch.tensor([1]))
    for _ in range(2):
        lab.run(cache, tokens[:1, :1])
    assert [layer.slab.slack for layer in cache.ragged] == [0] * 4
    with pytest.raises(CacheError, match=r"room for 9 .* larger max_new_tokens"):
        lab.run(cache, tokens[:1, :1])


def test_beams_take_room_for_their_steps_and_no_more(lab):
    want = lab.generate(lab.ids(), lab.cache(), new=8, num_beams=3)
    assert torch.equal(lab.generate(lab.ids(), lab.cache(max_new_tokens=7), new=8, num_beams=3), want)
    with pytest.raises(CacheError, match="room for 6"):
        lab.generate(lab.ids(), lab.cache(max_new_tokens=6), new=8, num_beams=3)


def test_candidates_of_prompt_lookup_take_room(lab):
    tokens = lab.ids(1, 8).repeat(1, 3)  # there is something to look up
    made = {"prompt_length": tokens.shape[1]}
    want = lab.generate(tokens, lab.cache(**made), new=12)
    looked_up = {"new": 12, "prompt_lookup_num_tokens": 5}
    assert torch.equal(lab.generate(tokens, lab.cache(**made, max_new_tokens=12 + 5), **looked_up), want)
    with pytest.raises(CacheError, match="prompt lookup"):
        lab.generate(tokens, lab.cache(**made, max_new_tokens=12), **looked_up)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_a_cache_is_copied_deeply_and_never_pickled(tiny, name):
    model, processor = tiny(name)
    inputs, steps = inputs_for(processor, [0]), [torch.tensor([[9]]), torch.tensor([[12, 15]])]
    cache = sparsemm.compressed_cache(model, "snapkv", 24, window=WINDOW)
    model(**inputs, past_key_values=cache)
    other = copy.deepcopy(cache)
    for store in (copy.copy, lambda one: torch.save(one, io.BytesIO())):  # both ask for a pickle
        with pytest.raises(CacheError, match="cannot be pickled"):
            store(cache)
    own, copied = ([model(step, past_key_values=one).logits for step in steps] for one in (cache, other))
    assert all(map(torch.equal, own, copied))
    assert cache.kept_slots().tolist() == other.kept_slots().tolist()
