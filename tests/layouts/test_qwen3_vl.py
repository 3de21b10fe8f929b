"""Qwen3-VL's geometry against its processor and its model, at many sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from sparsemm.layouts import get_layout
from sparsemm.prompts import build_inputs
from tests.families import made
from tests.layouts.geometry import check_batches, check_order, check_published_grids, draw_batches

NAME = "qwen3-vl"
LAYOUT = get_layout("qwen3_vl")


def test_counts_tiling_and_boxes_in_batches_of_several_images():
    check_batches(*made(NAME), LAYOUT, draw_batches(240, 12, 260))


def test_grids_of_the_published_geometry_are_accepted():
    limits = {"shortest_edge": 4096, "longest_edge": 1310720}
    check_published_grids(made(NAME)[1].image_processor, patch_size=16, limits=limits)


@pytest.mark.parametrize("per_row", [1, 2])
def test_pixels_that_change_lie_under_the_tokens_of_their_box(per_row):
    """Read off the features that take the tokens' places."""
    check_order(*made(NAME), LAYOUT, most=120, cell=16, per_row=per_row)


def test_deepstack_adds_its_features_at_the_layouts_tokens():
    model, processor = made(NAME)
    size = (90, 70)
    inputs = build_inputs(processor, [[Image.effect_noise(size, 80).convert("RGB")]], ["Read"])
    (tokens,) = LAYOUT.image_tokens(model.config, inputs, 0, [size])
    seen = {}

    def look(module, arguments, options):
        seen.update(options)

    hook = model.model.language_model.register_forward_pre_hook(look, with_kwargs=True)
    with torch.no_grad():
        model(**inputs)
    hook.remove()
    assert np.flatnonzero(seen["visual_pos_masks"][0].numpy()).tolist() == tokens.positions.tolist()
    assert [len(features) for features in seen["deepstack_visual_embeds"]] == [len(tokens.positions)] * 2
