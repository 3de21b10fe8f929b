"""Heads that are off are off, in every family; controls are as many."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image

from sparsemm.errors import ModelError
from sparsemm.prompts import build_inputs
from sparsemm.scores import ScoreTable
from sparsemm.studies.common.heads import (
    LAYERS,
    RANDOM,
    TOP,
    Off,
    best_heads,
    heads_off,
    random_heads,
    random_heads_by_page,
)
from sparsemm.studies.masking import conclusion
from tests.report.crafted import study_rows

FAMILIES = ("tiny-llava-next-vicuna", "tiny-llava-next-mistral", "tiny-qwen2-vl")


def attentions(model):
    """The language model's attention modules, in order."""
    text = model.get_decoder()
    return [layer.self_attn for layer in text.layers]


@contextmanager
def hooked(model, heads, zero):
    """The same by hooks: zeros in the query projection's output, or in the output projection's input."""
    dim = model.config.get_text_config().hidden_size // heads.shape[1]
    dim = getattr(model.config.get_text_config(), "head_dim", None) or dim

    def blank(tensor, layer):
        columns = torch.from_numpy(np.repeat(heads[layer], dim))
        return tensor.masked_fill(columns, 0.0)

    handles = []
    for layer, module in enumerate(attentions(model)):
        if zero == "query":
            hook = module.q_proj.register_forward_hook(lambda m, i, out, layer=layer: blank(out, layer))
        else:
            hook = module.o_proj.register_forward_pre_hook(lambda m, i, layer=layer: (blank(i[0], layer),))
        handles.append(hook)
    yield
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("zero", ["output", "query"])
def test_off_is_what_zeros_in_the_projections_do(tiny, name, zero):
    model, processor = tiny(name)
    config = model.config.get_text_config()
    before = config._attn_implementation
    heads = np.random.default_rng(1).random((config.num_hidden_layers, config.num_attention_heads)) < 0.4
    page = Image.new("RGB", (84, 84), "white")
    inputs = build_inputs(processor, [[page], [page]], ["Read the page.", "What is k?"])

    def run(model):
        with torch.inference_mode():
            return model(**inputs).logits[:, -1]

    with hooked(model, heads, zero):
        wanted = run(model)
    result = heads_off(run, Off(heads, zero), model)
    assert torch.allclose(result, wanted, atol=1e-5)
    assert not torch.allclose(result, run(model), atol=1e-3)
    assert torch.equal(heads_off(run, None, model), heads_off(run, Off(np.zeros_like(heads), zero), model))
    assert config._attn_implementation == before


@pytest.mark.parametrize("zero", ["output", "query"])
def test_every_row_can_have_heads_of_its_own(tiny, zero):
    model, processor = tiny("tiny-qwen2-vl")
    config = model.config.get_text_config()
    like = np.random.default_rng(1).random((config.num_hidden_layers, config.num_attention_heads)) < 0.4
    page = Image.new("RGB", (84, 84), "white")
    inputs = build_inputs(processor, [[page]] * 3, ["Read the page."] * 3)
    heads = random_heads_by_page(like, 0, False, [4, 9, 4])
    assert np.array_equal(heads[0], heads[2]) and not np.array_equal(heads[0], heads[1])

    def run(model):
        with torch.inference_mode():
            return model(**inputs).logits[:, -1]

    result = heads_off(run, Off(heads, zero), model)
    for row in range(3):
        alone = heads_off(run, Off(heads[row], zero), model)[row]
        assert torch.allclose(result[row], alone, atol=1e-5)
    assert not torch.allclose(result[0], result[1], atol=1e-3) and torch.allclose(result[0], result[2], atol=1e-5)
    with pytest.raises(ModelError, match="heads"):
        heads_off(run, Off(heads[:2], zero), model)


def test_heads_of_another_model_are_refused_and_all_is_restored(tiny):
    model, _ = tiny("tiny-qwen2-vl")
    before = model.config.get_text_config()._attn_implementation
    with pytest.raises(ModelError, match="heads"):
        heads_off(lambda m: m(input_ids=torch.tensor([[1, 2]])), Off(np.ones((99, 3), dtype=bool), "query"), model)
    assert model.config.get_text_config()._attn_implementation == before


def table(scores):
    header = {"model": "m", "revision": None, "fingerprint": "f", "num_kv_heads": 2}
    return ScoreTable.from_samples(scores[None], np.zeros(scores.shape, np.int64), header)


@pytest.mark.parametrize(("fraction", "count"), [(0.01, 1), (0.3, 12), (1.0, 40)])
def test_the_best_heads_and_as_many_random_ones(fraction, count):
    scores = np.random.default_rng(2).random((5, 8))
    top = best_heads(table(scores), fraction)
    assert top.sum() == count and scores[top].min() >= scores[~top].max(initial=0)
    for seed in range(5):
        anywhere, same = random_heads(top, seed, False), random_heads(top, seed, True)
        assert anywhere.sum() == count and (same.sum(axis=1) == top.sum(axis=1)).all()
        assert np.array_equal(anywhere, random_heads(top, seed, False))
    if count == 12:
        assert len({random_heads(top, seed, True).tobytes() for seed in range(5)}) == 5


@pytest.mark.parametrize(
    ("lower", "words"),
    [
        (0, "in 0 of 2 comparisons"),
        (0, "most show no such loss"),
        (1, "the other half shows no such loss"),
        (2, "the visual heads carry what the model reads"),
    ],
)
def test_the_conclusion_counts_as_it_says(lower, words):
    one = next(row for row in study_rows("masking") if row.verdict)
    change = {"condition": "output zeroed", "setting": TOP}
    verdicts = ["worse"] * lower + ["no difference shown"] * (2 - lower)
    rows = [
        one.model_copy(update=change | {"against": control, "verdict": verdict})
        for control, verdict in zip((RANDOM, LAYERS), verdicts, strict=True)
    ]
    assert words in conclusion(rows)
