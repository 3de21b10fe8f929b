"""What heads look at, against the attention that transformers itself gives out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from sparsemm.attention_probe import observe_attention
from sparsemm.prompts import build_inputs
from sparsemm.scores import ScoreTable
from sparsemm.studies.common.watch import Watch
from sparsemm.studies.looking import BEST, LAST, MIDDLE, groups


@pytest.mark.parametrize("name", ["tiny-llava-next-mistral", "tiny-qwen2-vl"])
def test_shares_are_sums_of_the_attention(tiny, name):
    model, processor = tiny(name)
    before = model.config.get_text_config()._attn_implementation
    inputs = build_inputs(processor, [[Image.new("RGB", (84, 84), "gray")]], ["Read the page."])
    length = inputs["input_ids"].shape[1]
    rows, marks = torch.tensor([length - 3, length - 1]), torch.zeros(2, 2, length)
    marks[0, 0, 2:5], marks[0, 1, 9], marks[1] = 1, 1, 1
    watch = Watch(rows, marks)
    with torch.inference_mode(), observe_attention(model, watch):
        model(**inputs, use_cache=False)
    assert model.config.get_text_config()._attn_implementation == before
    kinds = {part: getattr(model.config, part)._attn_implementation for part in model.config.sub_configs}
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        wanted = model(**inputs, use_cache=False, output_attentions=True).attentions
    model.set_attn_implementation(kinds)
    assert len(wanted) == len(watch.shares)
    for layer, attention in enumerate(wanted):
        first, second = (attention[0, :, row] for row in rows)
        mean = (first[:, 2:5].sum(-1) + second[:, 9]) / 2
        assert torch.allclose(watch.shares[layer][:, 0], mean, atol=1e-5)
        assert torch.allclose(watch.shares[layer][:, 1], torch.ones(len(mean)), atol=1e-5)


def test_groups_are_as_large_and_apart():
    scores = np.random.default_rng(0).random((4, 10))
    header = {"model": "m", "revision": None, "fingerprint": "f", "num_kv_heads": 2}
    table = ScoreTable.from_samples(scores[None], np.zeros((4, 10), np.int64), header)
    result = groups(table, 0.1)
    assert [len(result[g]) for g in (BEST, MIDDLE, LAST)] == [4, 4, 4] and len(
        set(np.concatenate([*result.values()]))
    ) == 12
    flat = scores.ravel()
    assert flat[result[BEST]].min() > flat[result[MIDDLE]].max() > flat[result[LAST]].max()
    assert [sum(flat > flat[i]) for i in result[MIDDLE]] == [18, 19, 20, 21]
