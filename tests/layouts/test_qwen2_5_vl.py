"""Qwen2.5-VL's geometry against its processor and its model, at many sizes."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

import sparsemm
from sparsemm.attention_probe import observe_attention
from sparsemm.layouts import get_layout
from sparsemm.prompts import build_inputs
from tests.families import made
from tests.layouts.geometry import check_batches, check_order, check_published_grids, draw_batches

NAME = "qwen2.5-vl"
LAYOUT = get_layout("qwen2_5_vl")


def test_counts_tiling_and_boxes_in_batches_of_several_images():
    check_batches(*made(NAME), LAYOUT, draw_batches(240, 12, 260))


def test_grids_of_the_published_geometry_are_accepted():
    limits = {"shortest_edge": 3136, "longest_edge": 1003520}
    check_published_grids(made(NAME)[1].image_processor, patch_size=14, limits=limits)


@pytest.mark.parametrize("per_row", [1, 2])
def test_pixels_that_change_lie_under_the_tokens_of_their_box(per_row):
    """Read off the model's features: its tower sorts patches into windows and back."""
    check_order(*made(NAME), LAYOUT, most=120, cell=16, per_row=per_row)


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
