"""Models that mix full and sliding-window attention: budgets for the full layers, transformers' own for the others."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    DynamicCache,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.cache_utils import DynamicSlidingWindowLayer

import sparsemm
from sparsemm.errors import BudgetError
from sparsemm.prompts import build_inputs
from tests.families import made
from tests.policies.making import ANY_LENGTH

KINDS = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]


@lru_cache
def _model(name, **sizes):
    torch.manual_seed(0)
    if name == "gemma3":
        config = Gemma3TextConfig(**sizes, sliding_window=7, layer_types=KINDS, head_dim=8, query_pre_attn_scalar=8)
        return Gemma3ForCausalLM._from_config(config, dtype=torch.float32).eval()
    config = Qwen2Config(**sizes, use_sliding_window=True, sliding_window=7, max_window_layers=0, layer_types=KINDS)
    return Qwen2ForCausalLM._from_config(config, dtype=torch.float32).eval()


@pytest.fixture(params=["gemma3", "qwen2"])
def mixed(request, lab):
    model = _model(request.param, **lab.sizes)
    model.set_attn_implementation("sdpa")
    return type(lab)(model)


@pytest.mark.parametrize("method", ANY_LENGTH)
def test_everything_kept_is_token_identical(mixed, method):
    tokens = mixed.ids()
    tokens[0, :9] = 0
    want = mixed.generate(tokens, DynamicCache(config=mixed.model.config))
    assert torch.equal(mixed.generate(tokens, mixed.cache(method, 30)), want)


@pytest.mark.parametrize("method", [m for m in ANY_LENGTH if m != "full"])
def test_totals_count_both_kinds_of_layers(mixed, method):
    cache = mixed.cache(method, 9)
    mixed.generate(mixed.ids(), cache, new=5)
    assert [type(layer) is DynamicSlidingWindowLayer for layer in cache.layers] == [True, False, True, False]
    assert [int(s.sum()) for s in torch.stack(cache.budgets()).sum(-1).T] == [2 * 3 * 9] * 2
    rows = 2 * 3 * (9 + 4) + 2 * 3 * 6  # a window of 7 holds 6 tokens of the past
    assert cache.kept_slots().tolist() == [rows] * 2
    assert cache.kept_bytes() == 2 * rows * 2 * 8 * 4
    assert cache.kept_bytes() < cache.slab_bytes()


def test_scores_are_those_of_the_full_layers(mixed):
    scores = np.ones((4, 3))
    scores[1], scores[0] = 9, 100
    cache = sparsemm.compressed_cache(mixed.model, "sparsemm", 9, scores, window=4)
    mixed.run(cache, mixed.ids())
    first, second = (int(b[0].sum()) for b in cache.budgets())
    assert first + second == 2 * 3 * 9 and first > 2 * second
    with pytest.raises(BudgetError, match="shape"):
        sparsemm.compressed_cache(mixed.model, "sparsemm", 9, scores[:3], window=4)


@pytest.mark.parametrize("options", [{"recompress": True}, {"hold_budget": True}, {"prompt_length": 30}])
def test_options_go_with_it(mixed, options):
    cache = mixed.cache("snapkv", 9, **options)
    tokens = mixed.ids(length=40)
    for start, stop in ((0, 20), (20, 30), (30, 31)):
        mixed.run(cache, tokens[:, start:stop])
    after = 0 if "hold_budget" in options else 1
    assert cache.kept_slots().tolist() == [2 * 3 * (9 + after) + 2 * 3 * 6] * 2


def test_beams_and_assisted_decoding(mixed):
    tokens = mixed.ids(batch=1)
    for options in ({"num_beams": 3}, {"prompt_lookup_num_tokens": 3}):
        mixed.model.set_attn_implementation("sdpa")
        want = mixed.generate(tokens, DynamicCache(config=mixed.model.config), **options)
        assert torch.equal(mixed.generate(tokens, mixed.cache("full"), **options), want)


def test_the_image_of_a_later_turn_is_seen_as_by_transformers():
    """Gemma 3: tokens of an image see each other, also when the prompt before them is compressed already."""
    model, processor = made("gemma3")
    image = [Image.effect_noise(size, 90).convert("RGB") for size in ((90, 60), (50, 130), (70, 70))]
    turns = [build_inputs(processor, [[one], [image[2]]], ["Read", "What is sun?"]) for one in image[:2]]
    mask = torch.cat([turn["attention_mask"] for turn in turns], dim=1)
    types = torch.cat([turn["token_type_ids"] for turn in turns], dim=1)
    assert not turns[1]["attention_mask"].all()

    @torch.no_grad()
    def logits(cache, **options):
        model(**turns[0], past_key_values=cache)
        later = {"input_ids": turns[1]["input_ids"], "pixel_values": turns[1]["pixel_values"], "attention_mask": mask}
        return model(**later, past_key_values=cache, **options).logits[turns[1]["attention_mask"].bool()]

    model.set_attn_implementation("sdpa")
    want = logits(DynamicCache(config=model.config.text_config), token_type_ids=types)
    causal = logits(DynamicCache(config=model.config.text_config))
    assert not torch.allclose(causal, want, rtol=1e-2, atol=1e-2)
    for method, options in (("full", {}), ("snapkv", {"prompt_length": turns[0]["input_ids"].shape[1]})):
        cache = sparsemm.compressed_cache(model, method, 10**4, window=4, **options)
        torch.testing.assert_close(logits(cache, token_type_ids=types), want, rtol=1e-4, atol=1e-4)
