"""Qwen3-VL's deepstack; its geometry is tested in test_qwen2_vl.py."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from sparsemm.layouts import get_layout
from sparsemm.prompts import build_inputs
from tests.families import made

NAME = "qwen3-vl"
LAYOUT = get_layout("qwen3_vl")


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
