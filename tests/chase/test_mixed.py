"""The chase of a model that mixes sliding and full attention, and whose image tokens see each other (Gemma 3)."""

from __future__ import annotations

import torch
from PIL import Image

from sparsemm.chase.strongest_keys import strongest_keys
from sparsemm.models import mixed_layers
from sparsemm.prompts import append_answers, build_inputs
from tests.families import made

KINDS = ["sliding_attention", "full_attention", "sliding_attention"]


def forced(processor):
    images = [[Image.effect_noise(size, 90).convert("RGB")] for size in ((90, 60), (50, 130))]
    inputs = build_inputs(processor, images, ["Read", "What is sun?"])
    return append_answers(inputs, [[30, 31, 32, 33], [34, 35]], processor.tokenizer.pad_token_id)


def test_every_head_looks_where_eager_attention_says():
    """Under the model's own masks: rows of the answer, and of the image, which sees ahead to its own end."""
    model, processor = made("gemma3")
    batch = forced(processor)
    assert not batch.inputs["attention_mask"].all()
    images = [torch.nonzero(ids == model.config.image_token_id).flatten() for ids in batch.inputs["input_ids"]]
    last = batch.inputs["input_ids"].shape[1] - 1
    rows = [[int(image[0]), int(image[5]), first, last] for image, first in zip(images, batch.first_rows, strict=True)]
    looked = strongest_keys(model, batch.inputs, rows)

    positions = (batch.inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    model.set_attn_implementation({"text_config": "eager"})
    try:
        with torch.no_grad():
            weights = model.model(**batch.inputs, position_ids=positions, output_attentions=True).attentions
    finally:
        model.set_attn_implementation({"text_config": "sdpa"})
    ahead = 0
    for b, one in enumerate(looked):
        want = torch.stack([layer[b][:, rows[b]].argmax(-1) for layer in weights])
        assert torch.equal(one.positions, want)
        ahead += int((want > torch.tensor(rows[b])).sum())
        window = torch.tensor(rows[b]) - model.config.text_config.sliding_window
        assert (want[0] > window).all() and (want[2] > window).all() and (want[1] <= window).any()
    assert ahead > 0  # a causal mask would have hidden these


def test_the_header_names_the_sliding_layers(tiny):
    model, _ = made("gemma3")
    assert model.config.text_config.layer_types == KINDS
    assert mixed_layers(model.config) == {"sliding_layers": [0, 2], "sliding_window": 24}
    assert mixed_layers(made("internvl")[0].config) == {}
