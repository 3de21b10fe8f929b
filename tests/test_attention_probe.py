"""Whoever observes a model's attention sees every call of its language model, and leaves the model as it was."""

from __future__ import annotations

import copy
import sys
import threading

import pytest
import torch
from PIL import Image
from transformers import AttentionInterface, DynamicCache, Gemma2Config, Gemma2ForCausalLM

from sparsemm.attention_probe import PLACE, AttentionCall, attention_weights, detour_of, observe_attention
from sparsemm.errors import ModelError
from sparsemm.prompts import build_inputs
from tests.cache.conftest import SIZES, Lab, _text_model
from tests.families import MODELS, made

LAYERS = SIZES["num_hidden_layers"]


@pytest.fixture
def lab():
    return Lab(copy.deepcopy(_text_model()))


def base_of(model):
    return getattr(model, model.base_model_prefix)


@torch.no_grad()
def logits(model, **inputs):
    return model(**inputs, use_cache=False).logits


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", MODELS)
def test_weights_are_those_of_eager_attention_in_every_family(name, implementation, monkeypatch):
    model, processor = made(name)
    text = model.config.get_text_config()
    inputs = build_inputs(processor, [[Image.effect_noise((84, 84), 60).convert("RGB")]], ["Read the page."])
    rows = torch.tensor([3, inputs["input_ids"].shape[1] - 1])
    monkeypatch.setitem(vars(text), PLACE, "eager")  # the language model alone
    with torch.no_grad():
        expected = base_of(model)(**inputs, use_cache=False, output_attentions=True).attentions
    monkeypatch.setitem(vars(text), PLACE, implementation)
    want, before, found = logits(model, **inputs), copy.deepcopy(vars(text)), {}

    def observer(call):
        assert call.query.shape[:2] == (1, text.num_attention_heads) and call.key.shape == call.value.shape
        found[call.layer] = call.weights(rows)

    with observe_attention(model, observer):
        assert text._attn_implementation == implementation and type(copy.deepcopy(text)._attn_implementation) is str
        assert torch.equal(logits(model, **inputs), want)
    assert vars(text) == before and type(text._attn_implementation) is str
    expected = {layer: weights for layer, weights in enumerate(expected) if weights is not None}
    kinds = getattr(text, "layer_types", None) or ["full_attention"] * text.num_hidden_layers
    assert sorted(found) == [layer for layer, kind in enumerate(kinds) if kind != "linear_attention"]
    for weights, (_, one) in zip(expected.values(), sorted(found.items()), strict=True):
        torch.testing.assert_close(one, weights[0][:, rows], rtol=1e-4, atol=1e-5)


def test_a_mask_is_obeyed():
    torch.manual_seed(0)
    query, key = torch.randn(1, 4, 6, 8), torch.randn(1, 2, 6, 8)
    mask = torch.ones(6, 6, dtype=torch.bool).tril()
    mask[:, 0] = False
    mask[0, 0] = True
    rows = torch.tensor([2, 5])
    masked = attention_weights(query, key, rows, mask[None, None], 0.3)
    assert (masked[..., 0] == 0).all() and torch.allclose(masked.sum(-1), torch.ones(4, 2))
    causal = attention_weights(query, key, rows, None, 0.3)
    assert (causal[:, 0, 3:] == 0).all() and (causal[:, 0, :3] > 0).all()
    torch.testing.assert_close(masked[..., 1:], causal[..., 1:] / causal[..., 1:].sum(-1, keepdim=True))


def test_a_mask_is_read_whatever_the_implementation_takes():
    seen = torch.ones(6, 6, dtype=torch.bool).tril()[None, None]
    added = torch.where(seen, 0.0, torch.finfo(torch.bfloat16).min).bfloat16()

    def mask(value):
        return AttentionCall(0, *[torch.empty(1, 1, 6, 2)] * 3, 1.0, value, lambda query: (query, None)).mask

    assert mask(None) is None and torch.equal(mask(seen), seen) and torch.equal(mask(added), seen)
    for other in (torch.ones(1, 6), "blocks"):
        with pytest.raises(ModelError, match="cannot be read"):
            mask(other)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_spans_stand_in_for_a_mask_of_padding(lab, side, implementation):
    lab.model.set_attn_implementation(implementation)
    pads, tokens, masks = [0, 2, 2, 3, 0], lab.ids(batch=5, length=9), set()
    spans = [(n, 9) if side == "left" else (0, 9 - n) for n in pads]
    mask = torch.zeros(5, 9, dtype=torch.int64)
    for row, (first, stop) in enumerate(spans):
        mask[row, first:stop] = 1
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with observe_attention(lab.model, lambda call: masks.add(call.mask is None), spans):
        found = logits(lab.model, input_ids=tokens, attention_mask=mask, position_ids=positions)
    assert masks == {True}
    for row, (first, stop) in enumerate(spans):
        alone = logits(lab.model, input_ids=tokens[row : row + 1, first:stop])
        torch.testing.assert_close(found[row, first:stop], alone[0], rtol=1e-4, atol=1e-5)


def test_spans_are_refused_where_the_weights_have_more_to_them():
    model = Gemma2ForCausalLM(Gemma2Config(**SIZES | {"eos_token_id": 1}, head_dim=8, sliding_window=99)).eval()
    with observe_attention(model, lambda call: None), torch.no_grad():
        model(torch.ones(1, 4, dtype=torch.int64))
    with pytest.raises(ModelError, match="softcap"), observe_attention(model, lambda call: None, [(0, 4)]):
        model(torch.ones(1, 4, dtype=torch.int64))


def without(head):
    """An observer that zeroes what one head of every layer puts out."""

    def observer(call):
        output = call.attend()
        output[:, :, head] = 0.0
        return output

    return observer


def test_the_inner_observer_sees_a_call_first_and_attends_by_the_outer_one(lab):
    tokens, order = lab.ids(), []

    def both(call):
        output = call.attend()
        output[:, :, [1, 4]] = 0.0
        return output

    with observe_attention(lab.model, both):
        want = logits(lab.model, input_ids=tokens)
    with observe_attention(lab.model, without(1)):
        outer = logits(lab.model, input_ids=tokens)
        with observe_attention(lab.model, without(4)):
            assert torch.equal(logits(lab.model, input_ids=tokens), want)
        assert torch.equal(logits(lab.model, input_ids=tokens), outer)
    with observe_attention(lab.model, lambda call: order.append("outer")):
        with observe_attention(lab.model, lambda call: order.append("inner")):
            logits(lab.model, input_ids=tokens)
    assert order == ["inner", "outer"] * LAYERS
    assert not torch.allclose(outer, want)


@pytest.mark.parametrize("padded", [False, True])
def test_spans_reach_an_observer_around_them(lab, padded):
    tokens, pads = lab.ids(), 7 if padded else 0
    mask = torch.ones_like(tokens)
    mask[:, :pads] = 0
    with observe_attention(lab.model, without(2)):
        want = logits(lab.model, input_ids=tokens, attention_mask=mask)
        with observe_attention(lab.model, lambda call: None, [(pads, 30)] * 2):
            found = logits(lab.model, input_ids=tokens, attention_mask=mask)
    torch.testing.assert_close(found[:, pads:], want[:, pads:])


def stop(call):
    raise RuntimeError("stop")


def test_errors_leave_the_model_as_it_was(lab):
    before, want = copy.deepcopy(vars(lab.model.config)), logits(lab.model, input_ids=lab.ids())
    with pytest.raises(RuntimeError, match="stop"), observe_attention(lab.model, stop):
        logits(lab.model, input_ids=lab.ids())
    with pytest.raises(RuntimeError, match="stop"), observe_attention(lab.model, without(0)):
        with observe_attention(lab.model, without(1)):
            raise RuntimeError("stop")
    assert vars(lab.model.config) == before and type(lab.model.config._attn_implementation) is str
    assert torch.equal(logits(lab.model, input_ids=lab.ids()), want)


def test_another_implementation_may_be_chosen_meanwhile(lab):
    with observe_attention(lab.model, lambda call: None):
        lab.model.set_attn_implementation("eager")
    assert lab.model.config._attn_implementation == "eager"


def test_two_models_are_observed_apart(lab):
    other, seen = Lab(copy.deepcopy(_text_model())), []
    with observe_attention(lab.model, without(3)), observe_attention(other.model, lambda call: seen.append(call.layer)):
        logits(lab.model, input_ids=lab.ids())
        assert not seen
        want = logits(other.model, input_ids=lab.ids())
    assert seen == [*range(LAYERS)] and torch.equal(logits(other.model, input_ids=lab.ids()), want)


def test_a_model_that_cannot_be_observed_is_refused(lab):
    for layer in lab.model.model.layers:
        layer.self_attn.config = copy.deepcopy(lab.model.config)
    with pytest.raises(ModelError, match="takes its attention"), observe_attention(lab.model, lambda call: None):
        pass
    assert type(lab.model.config._attn_implementation) is str


def test_threads_see_their_own_calls(lab):
    """One observes, one takes heads away, one has spans, one answers with a compressed cache, one does nothing."""
    tokens = lab.ids()
    mask = torch.ones_like(tokens)
    mask[:, :4] = 0
    work = {
        "observes": (lambda call: None, None),
        "without": (without(2), None),
        "spans": (lambda call: None, [(4, 30)] * 2),
        "plain": None,
        "cache": None,
    }

    def once(kind):
        if kind == "cache":
            return lab.generate(tokens, lab.cache())
        if work[kind] is None:
            return logits(lab.model, input_ids=tokens, attention_mask=mask)
        callback, spans = work[kind]
        seen = []

        def observer(call):
            seen.append((threading.get_ident(), call.layer))
            return callback(call)

        with observe_attention(lab.model, observer, spans):
            found = logits(lab.model, input_ids=tokens, attention_mask=mask)
        assert seen == [(threading.get_ident(), layer) for layer in range(LAYERS)]
        return found

    number = torch.get_num_threads()
    torch.set_num_threads(1)
    want, failures = {kind: once(kind) for kind in work}, []

    def repeat(kind):
        torch.set_num_threads(1)
        try:
            for _ in range(8):
                assert torch.equal(once(kind), want[kind]), kind
        except BaseException as error:
            failures.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=repeat, args=(kind,)) for kind in work]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
        torch.set_num_threads(number)
    assert not failures, failures
    assert type(lab.model.config._attn_implementation) is str


@pytest.mark.parametrize("first", ["observer", "cache"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_compressed_cache_shows_its_prompt(lab, monkeypatch, implementation, first):
    """In whichever order the two register with transformers."""
    lab.model.set_attn_implementation(implementation)
    monkeypatch.delitem(AttentionInterface._global_mapping, detour_of(implementation), raising=False)
    if first == "cache":
        lab.run(lab.cache(), lab.ids())
    seen = []
    with observe_attention(
        lab.model, lambda call: seen.append((call.layer, *call.query.shape[2:3], call.key.shape[2]))
    ):
        logits(lab.model, input_ids=lab.ids())
        del seen[:]
        found = lab.generate(lab.ids(), lab.cache())
    assert seen == [(layer, 30, 30) for layer in range(LAYERS)]
    assert torch.equal(found, lab.generate(lab.ids(), lab.cache()))
    with observe_attention(lab.model, without(1)):
        off = [lab.run(cache, lab.ids()) for cache in (lab.cache(), DynamicCache())]
    torch.testing.assert_close(*off)
    assert not torch.allclose(off[0], lab.run(lab.cache(), lab.ids()))
    assert lab.model.config._attn_implementation == implementation
    assert type(lab.model.config._attn_implementation) is str
