"""The windows of Qwen2.5-VL's tower; its geometry is tested in test_qwen2_vl.py."""

from __future__ import annotations

import torch
from PIL import Image

import sparsemm
from sparsemm.attention_probe import observe_attention
from sparsemm.prompts import build_inputs
from tests.families import made

NAME = "qwen2.5-vl"


def test_the_language_model_alone_is_switched():
    """Windows of Qwen2.5-VL's tower need its own attention; the chase and the cache change that of the text."""
    model, processor = made(NAME)
    inputs = build_inputs(processor, [[Image.effect_noise((90, 70), 80).convert("RGB")]], ["Read"])
    tower = model.model.visual
    windows: list[int] = []
    hook = tower.blocks[0].register_forward_pre_hook(
        lambda module, arguments, options: windows.append(len(options["cu_seqlens"])), with_kwargs=True
    )
    before = tower.config._attn_implementation
    with torch.no_grad():
        want = model(**inputs).logits
        with observe_attention(model, lambda call: None, [(0, inputs["input_ids"].shape[1])]):
            assert tower.config._attn_implementation == before
            got = model(**inputs, use_cache=False).logits
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
        cache = sparsemm.compressed_cache(model, "full", 8)
        torch.testing.assert_close(model(**inputs, past_key_values=cache).logits, want, rtol=1e-4, atol=1e-4)
    hook.remove()
    assert tower.config._attn_implementation == before and len(set(windows)) == 1 and windows[0] > 2
