"""The watched attention is the model's own."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from sparsemm.explorer.attention import watching, weights
from sparsemm.prompts import build_inputs


@pytest.mark.parametrize("name", ["tiny-llava-next-mistral", "tiny-qwen2-vl"])
def test_weights_are_those_of_eager_attention(tiny, name):
    model, processor = tiny(name)
    inputs = build_inputs(processor, [[Image.new("RGB", (84, 84), "white")]], ["Read the page."])
    rows = torch.tensor([3, inputs["input_ids"].shape[1] - 1])
    found = {}

    def watcher(layer, query, key, mask, scaling):
        found[layer] = weights(query, key, rows, mask, scaling)

    before = model.config.get_text_config()._attn_implementation
    with torch.inference_mode(), watching(model, watcher):
        getattr(model, model.base_model_prefix)(**inputs, use_cache=False)
    assert model.config.get_text_config()._attn_implementation == before
    model.set_attn_implementation("eager")  # the vision tower too: sdpa has no weights to give
    try:
        with torch.inference_mode():
            expected = model(**inputs, use_cache=False, output_attentions=True).attentions
    finally:
        model.set_attn_implementation(before)
    assert sorted(found) == list(range(len(expected)))
    for layer, attention in enumerate(expected):
        torch.testing.assert_close(found[layer], attention[0][:, rows], rtol=1e-4, atol=1e-5)


def test_a_mask_is_obeyed():
    torch.manual_seed(0)
    query, key = torch.randn(1, 4, 6, 8), torch.randn(1, 2, 6, 8)
    mask = torch.ones(6, 6, dtype=torch.bool).tril()
    mask[:, 0] = False
    mask[0, 0] = True
    rows = torch.tensor([2, 5])
    masked = weights(query, key, rows, mask[None, None], 0.3)
    assert (masked[..., 0] == 0).all() and torch.allclose(masked.sum(-1), torch.ones(4, 2))
    causal = weights(query, key, rows, None, 0.3)
    assert (causal[:, 0, 3:] == 0).all() and (causal[:, 0, :3] > 0).all()
    torch.testing.assert_close(masked[..., 1:], causal[..., 1:] / causal[..., 1:].sum(-1, keepdim=True))


def test_what_was_set_comes_back_after_an_error(tiny):
    model, _ = tiny("tiny-qwen2-vl")
    before = model.config.get_text_config()._attn_implementation
    with pytest.raises(RuntimeError), watching(model, lambda *_: None):
        raise RuntimeError
    assert model.config.get_text_config()._attn_implementation == before
