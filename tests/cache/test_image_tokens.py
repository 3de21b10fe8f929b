"""Methods that ask which tokens stand for an image: told by a prefill, told by the user, or not told."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

import sparsemm
from sparsemm.cache.prefill import prefill
from sparsemm.errors import CacheError
from sparsemm.policies import SELECTORS, make_policy
from sparsemm.policies.layer_shares import LayerShares
from sparsemm.policies.snapkv import SnapKV
from tests.cache.test_device import prompt
from tests.cache.test_prefill import same_bits
from tests.policies.making import ANY_LENGTH

B, W = 16, 4
POLICIES = [name for name in ANY_LENGTH if "image" in make_policy(name, B, 1, window=W).reads]
SELECTED = [f"snapkv+{name}" for name in SELECTORS if "image" in make_policy(f"snapkv+{name}", B, window=W).reads]
ASKING = [*POLICIES, *SELECTED]


@pytest.mark.parametrize("method", ASKING)
def test_the_image_is_known_to_a_prefill_and_from_a_mask(tiny, method):
    model, processor = tiny("tiny-qwen2-vl")
    inputs = prompt(processor)
    mask = inputs["input_ids"] == model.config.image_token_id
    shared = prefill(model, inputs, None).compress(method, B, window=W)
    single = sparsemm.compressed_cache(model, method, B, window=W)
    prefill(model, inputs, cache=single)
    told = sparsemm.compressed_cache(model, method, B, window=W, image_mask=mask)
    model.generate(**inputs, past_key_values=told, do_sample=False, max_new_tokens=1)
    same_bits(shared, told)
    same_bits(single, told)
    heads = len(told.ragged) * told.ragged[0].policy.num_kv_heads
    assert told.kept_slots().tolist() == [heads * B] * 2
    blind = sparsemm.compressed_cache(model, method, B, window=W, image_mask=torch.zeros_like(mask))
    model.generate(**inputs, past_key_values=blind, do_sample=False, max_new_tokens=1)
    held = [layer.slab.keys[: int(layer.slab.lengths.sum())] for layer in (*told.ragged, *blind.ragged)]
    half = len(held) // 2
    assert any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(held[:half], held[half:], strict=True))


@pytest.mark.parametrize("method", ASKING)
def test_an_unknown_image_and_that_of_another_prompt_are_refused(tiny, method):
    model, processor = tiny("tiny-qwen2-vl")
    inputs = prompt(processor)
    for mask, what in (
        (None, "needs the image tokens.*image_mask="),
        (torch.ones(1, 500, dtype=torch.bool), r"image_mask has shape \(1, 500\), the prompt has 2 rows"),
        (torch.ones(2, 9, dtype=torch.bool), r"image_mask has shape \(2, 9\), the prompt has 2 rows"),
    ):
        cache = sparsemm.compressed_cache(model, method, B, window=W, image_mask=mask)
        with pytest.raises(CacheError, match=what):
            model.generate(**inputs, past_key_values=cache, do_sample=False, max_new_tokens=1)
        with pytest.raises(CacheError, match="broke off"):
            model.generate(**inputs, past_key_values=cache, do_sample=False, max_new_tokens=1)


def test_a_cache_that_is_reset_asks_for_the_new_image(tiny):
    model, processor = tiny("tiny-qwen2-vl")
    inputs = prompt(processor)
    mask = inputs["input_ids"] == model.config.image_token_id
    cache = sparsemm.compressed_cache(model, "vl-cache", B, window=W, image_mask=mask)
    model.generate(**inputs, past_key_values=cache, do_sample=False, max_new_tokens=1)
    assert cache.ragged[0].policy._measured is not None
    cache.reset()
    assert cache.ragged[0].policy._measured is None
    with pytest.raises(CacheError, match="for each prompt a new cache"):
        model.generate(**inputs, past_key_values=cache, do_sample=False, max_new_tokens=1)


def test_all_layers_measure_before_one_is_split(lab):
    cache = lab.cache("vl-cache", 9)
    lab.run(cache, lab.ids())
    measured = cache.ragged[0].policy._measured
    assert measured.shape == (2, 4) and all(layer.policy._measured is measured for layer in cache.ragged)
    assert len({tuple(row) for row in torch.stack(cache.budgets())[:, 0].tolist()}) > 1  # layers differ
    cache.batch_select_indices(torch.tensor([1]))
    assert cache.ragged[2].policy._measured.tolist() == measured[1:].tolist()
    again = lab.cache("vl-cache", 9, recompress=True)
    lab.run(again, lab.ids(length=6))  # too short to be compressed: nothing is measured
    lab.run(again, lab.ids(length=30))
    assert (torch.stack(again.budgets()) == 9).all()


def test_tokens_behind_the_prompt_in_the_same_forward_are_refused(lab):
    with pytest.raises(CacheError, match="VLCache splits the budget after the last layer, but tokens follow"):
        lab.run(lab.cache("vl-cache", 9, prompt_length=20), lab.ids())
    with pytest.raises(CacheError, match="use another method with assisted decoding"):
        lab.cache("vl-cache", 9, prompt_length=30).activate_past_recording()


@dataclass(frozen=True, kw_only=True)
class Even(LayerShares):
    """As SnapKV, but all layers are measured first."""

    def measure(self, prompt):
        return prompt.key.new_ones(len(prompt.key))


@pytest.mark.parametrize("name", ["tiny-qwen2-vl", "tiny-llava-next-vicuna"])
def test_a_prefill_whose_question_comes_later_runs_in_two_parts(tiny, name):
    model, processor = tiny(name)
    inputs = prompt(processor)
    cut = inputs["input_ids"].shape[1] - 3
    said = []
    for policy in (SnapKV(budget=B, window=W), Even(budget=B, window=W)):
        cache = sparsemm.compressed_cache(model, policy, prompt_length=cut)
        start = prefill(model, inputs, cache=cache)
        said.append((start.logits, start.generate(cache, 6), cache))
    torch.testing.assert_close(said[1][0], said[0][0], rtol=1e-4, atol=1e-4)
    assert torch.equal(said[1][1], said[0][1])
    assert torch.equal(*(torch.stack(cache.budgets()) for *_, cache in said))


@pytest.mark.parametrize("method", ["vl-cache", "meda"])
def test_methods_that_measure_all_layers_serve_questions_that_come_later(tiny, method):
    model, processor = tiny("tiny-qwen2-vl")
    inputs = prompt(processor)
    cut = inputs["input_ids"].shape[1] - 3
    later = sparsemm.compressed_cache(model, method, B, window=W, prompt_length=cut)
    prefill(model, inputs, cache=later)
    page = sparsemm.compressed_cache(model, method, B, window=W)
    head = {name: one[:, :cut] if one.shape == inputs["input_ids"].shape else one for name, one in inputs.items()}
    prefill(model, head, cache=page)
    assert torch.equal(torch.stack(later.budgets()), torch.stack(page.budgets()))
    assert len(torch.stack(later.budgets()).unique()) > 1
    assert (later.kept_slots() - page.kept_slots()).unique().tolist() == [
        3 * later.budgets()[0].shape[1] * len(later.ragged)
    ]


def test_a_forward_that_broke_off_leaves_nothing_behind(lab):
    cache = lab.cache("meda", 9)
    handle = lab.model.model.layers[2].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        lab.run(cache, lab.ids())
    handle.remove()
    assert cache.ragged[0].unsplit
    cache.reset()
    assert not cache.ragged[0].unsplit
    lab.run(cache, lab.ids())
    want = lab.cache("meda", 9)
    lab.run(want, lab.ids())
    same_bits(cache, want)
