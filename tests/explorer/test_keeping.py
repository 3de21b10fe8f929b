"""Kept positions are what the real cache holds after a real prefill."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from transformers import DynamicCache

from sparsemm.attention_probe import observe_attention
from sparsemm.cache import compressed_cache
from sparsemm.explorer.keeping import caches, kept_positions
from sparsemm.policies import make_policy_from
from sparsemm.prompts import build_inputs
from tests.policies.making import MERGING, UNTOLD

SETTINGS = {"window": 4, "rho": 0.1, "mode": "exact"}


@pytest.fixture(scope="module")
def prompt(tiny):
    """A model, the inputs of one page, and the keys of its full cache, per layer (Hkv, S, D)."""
    model, processor = tiny("tiny-qwen2-vl")
    page = Image.effect_mandelbrot((84, 84), (-2, -1.5, 1, 1.5), 50).convert("RGB")
    inputs = build_inputs(processor, [[page]], ["Read the page."])
    full = DynamicCache(config=model.config.get_text_config())
    with torch.inference_mode():
        model(**inputs, past_key_values=full, use_cache=True)
    return model, inputs, [layer.keys[0] for layer in full.layers]


@pytest.mark.parametrize("method", [method for method in UNTOLD if method not in ("full", *MERGING)])
def test_kept_keys_are_those_of_a_real_prefill(prompt, method):
    model, inputs, keys = prompt
    config = model.config.get_text_config()
    scores = torch.rand(
        config.num_hidden_layers, config.num_key_value_heads, generator=torch.Generator().manual_seed(3)
    )
    (empty,) = caches(model, scores, ("full", method), [12], SETTINGS, 5, 0).values()
    result = {}

    def observer(call):
        result[call.layer] = kept_positions(empty.layers[call.layer], call.query, call.key, call.scaling)

    with torch.inference_mode(), observe_attention(model, observer):
        getattr(model, model.base_model_prefix)(**inputs, use_cache=False)
    policy = make_policy_from(method, 12, scores, SETTINGS | {"pooling_kernel": 5, "seed": 0})
    real = compressed_cache(model, policy)
    with torch.inference_mode():
        model(**inputs, past_key_values=real, use_cache=True)
    for layer, (budget, ragged) in enumerate(zip(real.budgets(), real.ragged, strict=True)):
        assert result[layer].sum(-1).tolist() == budget[0].tolist()
        starts, lengths = ragged.slab.starts.tolist(), ragged.slab.lengths.tolist()
        for head, (start, count) in enumerate(zip(starts, lengths, strict=True)):
            torch.testing.assert_close(
                keys[layer][head][result[layer][head]], ragged.slab.keys[start : start + count], rtol=1e-4, atol=1e-4
            )


def test_half_precision_does_not_blur_positions(prompt):
    model, _, _ = prompt
    layer = compressed_cache(model, make_policy_from("snapkv", 400, None, SETTINGS)).layers[0]
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, heads, 600, 8, generator=generator).bfloat16() for heads in (16, 4))
    keep = kept_positions(layer, query, key, 0.3)
    assert keep.sum(-1).tolist() == [400] * 4 and keep[:, -4:].all()
    assert torch.equal(keep, kept_positions(layer, query, key, 0.3))  # the layer is empty again


def test_a_layer_that_is_not_compressed_keeps_everything():
    assert kept_positions(object(), torch.zeros(1, 4, 5, 2), torch.zeros(1, 2, 5, 2), 1.0).all()


def test_a_method_that_rates_by_values_is_left_out(prompt):
    model, _, _ = prompt
    assert not caches(model, None, ("snapkv+mixkv", "snapkv+critical"), [12], SETTINGS, 5, 0)
    assert len(caches(model, None, ("snapkv+peak", "snapkv+mixkv"), [12], SETTINGS, 5, 0)) == 1
