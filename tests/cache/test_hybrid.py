"""Models with linear attention, convolutions or sliding windows in most layers: only full attention is compressed."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
import transformers as hf
from transformers import DynamicCache

from sparsemm import compressed_cache
from sparsemm.cache.prefill import prefill
from sparsemm.errors import CacheError

SIZES = {
    "vocab_size": 48,
    "hidden_size": 48,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    "initializer_range": 0.2,
    "max_position_embeddings": 512,
}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
EXPERTS |= {"shared_expert_intermediate_size": 16}
JAMBA = {"use_mamba_kernels": False, "mamba_d_state": 4, "mamba_dt_rank": 4}
MAMBA = {"mamba_n_heads": 4, "mamba_d_state": 8, "mamba_expand": 1, "mamba_d_head": 12, "mamba_n_groups": 1}
MIXED = ["linear_attention", "full_attention"] * 2
FULL_FIRST = ["full_attention", "linear_attention", "linear_attention", "full_attention"]
LINEAR_LAST = ["linear_attention", "full_attention", "full_attention", "linear_attention"]
CONVOLVED = ["conv", "full_attention", "conv", "full_attention"]
SHARED = {"num_local_experts": 2, "num_experts_per_tok": 1, "shared_intermediate_size": 16}
MODELS = {
    "qwen3.5": ("Qwen3_5Text", {"layer_types": MIXED, "head_dim": 8, **LINEAR}),
    "qwen3.5-full-first": ("Qwen3_5Text", {"layer_types": FULL_FIRST, "head_dim": 8, **LINEAR}),
    "qwen3.5-linear-last": ("Qwen3_5Text", {"layer_types": LINEAR_LAST, "head_dim": 8, **LINEAR}),
    "qwen3-next": ("Qwen3Next", {"layer_types": MIXED, "head_dim": 8, **LINEAR, **EXPERTS}),
    "olmo-hybrid": ("OlmoHybrid", {"layer_types": MIXED, **LINEAR}),
    "lfm2": ("Lfm2", {"layer_types": CONVOLVED, "conv_L_cache": 3, "block_auto_adjust_ff_dim": False}),
    "bamba": ("Bamba", {"attn_layer_indices": [1, 3], **MAMBA}),
    "granite-hybrid": ("GraniteMoeHybrid", {"layer_types": ["mamba", "attention"] * 2, **SHARED, **MAMBA}),
    "jamba": ("Jamba", {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, **JAMBA}),
}
FULL, HEADS, HEAD_DIM, WINDOW, BUDGET, PROMPT = 2, 3, 8, 4, 8, 40


@cache
def made(name):
    kind, more = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = getattr(hf, f"{kind}Config")(**SIZES, **more)
        return hf.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


@pytest.fixture(params=MODELS)
def model(request):
    return made(request.param)


def prompt(batch=2, length=PROMPT, padding=7):
    """Tokens (batch, length) and their mask; the last row is padded on the left."""
    tokens = torch.randint(2, 48, (batch, length), generator=torch.Generator().manual_seed(1))
    tokens[-1, :padding] = 0
    return {"input_ids": tokens, "attention_mask": (tokens > 0).long()}


@torch.no_grad()
def answer(model, inputs, past, new=12, **options):
    return model.generate(**inputs, past_key_values=past, max_new_tokens=new, do_sample=False, **options)


def states(past):
    """The linear layers' states, by layer."""
    layers = [layer for layer in past.layers if hasattr(layer, "conv_states")]
    return [t for one in layers for t in (*one.conv_states.values(), *one.recurrent_states.values()) if t is not None]


def small(model, **options):
    return compressed_cache(model, "snapkv", BUDGET, window=WINDOW, **options)


def test_the_full_budget_answers_as_transformers_cache_does(model):
    inputs = prompt()
    theirs, ours = DynamicCache(config=model.config), compressed_cache(model, "full")
    want = answer(model, inputs, theirs)
    assert torch.equal(answer(model, inputs, ours), want) and len(want[:, PROMPT:].unique()) > 8
    for one, other in zip(states(ours), states(theirs), strict=True):
        assert torch.allclose(one, other, atol=1e-3)
    for row in range(2):  # alone, without padding
        real = inputs["attention_mask"][row].bool()
        alone = {name: value[row : row + 1, real] for name, value in inputs.items()}
        one = answer(model, alone, compressed_cache(model, "full"))
        assert torch.equal(one[0, -12:], want[row, -12:])


def test_only_full_layers_are_compressed_and_bytes_are_what_is_held(model):
    past = small(model)
    answer(model, prompt(), past, new=1)
    assert len(past.ragged) == FULL and past.kept_slots().tolist() == [FULL * HEADS * BUDGET] * 2
    rows = 2 * FULL * HEADS * BUDGET
    assert past.kept_bytes() == rows * 2 * HEAD_DIM * 4 + sum(state.nbytes for state in states(past))
    assert past.slab_bytes() >= past.kept_bytes() == past.summary().kept_bytes and len(states(past)) >= 2


def test_a_later_turn_goes_on(model):
    inputs = prompt()
    more = torch.randint(2, 48, (2, 9), generator=torch.Generator().manual_seed(2))
    replies = {}
    for name, past in (
        ("theirs", DynamicCache(config=model.config)),
        ("full", compressed_cache(model, "full")),
        ("small", small(model)),
        ("again", small(model, recompress=True)),
    ):
        first = answer(model, inputs, past)
        tokens = torch.cat([first, more], dim=1)
        mask = torch.cat([inputs["attention_mask"], torch.ones_like(tokens[:, PROMPT:])], dim=1)
        replies[name] = answer(model, {"input_ids": tokens, "attention_mask": mask}, past)[:, -12:]
        assert past.get_seq_length() == PROMPT + 12 + 9 + 12 - 1
    assert torch.equal(replies["full"], replies["theirs"])
    assert not torch.equal(replies["small"], replies["theirs"])


@pytest.mark.parametrize("name", sorted(MODELS.keys() - {"bamba", "jamba"}))  # whose own chunks compute otherwise
def test_a_prompt_in_chunks_is_compressed_as_in_one_piece(name):
    model = made(name)
    inputs = prompt(padding=0)
    whole, chunked = small(model), small(model, prompt_length=PROMPT)
    want = answer(model, inputs, whole)
    with torch.no_grad():
        for first in (0, 16, 32):
            model(inputs["input_ids"][:, first : first + 16], past_key_values=chunked, use_cache=True)
    assert torch.equal(torch.stack(chunked.budgets()), torch.stack(whole.budgets()))
    with torch.no_grad():
        last = model(want[:, PROMPT : PROMPT + 1], past_key_values=chunked, use_cache=True).logits[:, -1].argmax(-1)
    assert torch.equal(last, want[:, PROMPT + 1])


def test_rows_are_selected_repeated_and_searched_by_beams(model):
    inputs = prompt()
    past = small(model)
    answer(model, inputs, past, new=1)
    swapped, alone, twice = copy.deepcopy(past), copy.deepcopy(past), copy.deepcopy(past)
    swapped.reorder_cache(torch.tensor([1, 0]))
    alone.batch_select_indices(torch.tensor([False, True]))
    twice.batch_repeat_interleave(2)
    for one, other, third, whole in zip(*map(states, (swapped, alone, twice, past)), strict=True):
        assert torch.equal(one, whole.flip(0)) and torch.equal(other, whole[1:])
        assert torch.equal(third, whole.repeat_interleave(2, dim=0))
    theirs = answer(model, inputs, DynamicCache(config=model.config), num_beams=3)
    assert torch.equal(answer(model, inputs, compressed_cache(model, "full"), num_beams=3), theirs)


def test_a_copy_and_a_reset_cache_share_nothing(model):
    inputs = prompt()
    past = small(model)
    want = answer(model, inputs, past, new=1)
    other = copy.deepcopy(past)
    before = [state.clone() for state in states(other)]
    with torch.no_grad():
        model(want[:, -1:], past_key_values=past, use_cache=True)
    assert all(torch.equal(one, two) for one, two in zip(states(other), before, strict=True))
    assert not all(torch.equal(one, two) for one, two in zip(states(past), before, strict=True))
    past.reset()
    assert torch.equal(answer(model, inputs, past), answer(model, inputs, small(model)))


def test_tokens_are_taken_back_only_where_states_hold_them(model):
    inputs = prompt()
    past = small(model)
    want = answer(model, inputs, past, new=6)
    before, kept = [state.clone() for state in states(past)], past.kept_slots()
    for count in (1, 3):
        with pytest.raises(CacheError, match="linear-attention layer is of all tokens together"):
            past.crop(-count)
    past.crop(0)
    assert torch.equal(past.kept_slots(), kept) and past.get_seq_length() == want.shape[1] - 1
    assert all(torch.equal(one, two) for one, two in zip(states(past), before, strict=True))


def test_convolutions_alone_can_be_cropped_and_assisted():
    model = made("lfm2")
    inputs = prompt(batch=1, padding=0)
    want = answer(model, inputs, DynamicCache(config=model.config))
    past = compressed_cache(model, "full")
    assert torch.equal(answer(model, inputs, past, prompt_lookup_num_tokens=3), want)
    assert torch.equal(
        answer(model, inputs, small(model, prompt_length=PROMPT), prompt_lookup_num_tokens=3),
        answer(model, inputs, small(model)),
    )


@pytest.mark.parametrize("broken", range(4))
def test_a_forward_that_broke_off_is_noticed(model, broken):
    past = small(model)
    inputs = prompt(padding=0)
    answer(model, inputs, past, new=1)
    token = inputs["input_ids"][:, :1]

    def fail(*_):
        raise KeyboardInterrupt

    hook = model.get_decoder().layers[broken].register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt), torch.no_grad():
        model(token, past_key_values=past, use_cache=True)
    hook.remove()
    if broken == 0:  # nothing has been done
        return model(token, past_key_values=past, use_cache=True) and None
    with pytest.raises(CacheError, match="broke off"), torch.no_grad():
        model(token, past_key_values=past, use_cache=True)
    past.reset()
    assert torch.equal(answer(model, inputs, past), answer(model, inputs, small(model)))


def test_shared_prefills_do_not_share_states(model):
    inputs = prompt()
    start = prefill(model, inputs, WINDOW)
    want = answer(model, inputs, small(model))
    assert torch.equal(start.generate(start.compress("snapkv", BUDGET, window=WINDOW), 12), want)
    assert torch.equal(start.generate(start.compress("snapkv", BUDGET, window=WINDOW), 12), want)


@pytest.mark.parametrize(
    ("kind", "more", "match"),
    [
        ("FalconH1", {"mamba_n_heads": 4, "mamba_d_ssm": 48, "mamba_d_head": 12}, "LinearAttentionAndFullAttention"),
        ("Mamba", {}, "no layer has full attention"),
        ("MiniMax", {"layer_types": MIXED, "num_local_experts": 2, "head_dim": 8}, "cache class of its own"),
        (
            "Qwen3_5Text",
            {"layer_types": ["linear_attention"] * 4, "head_dim": 8, **LINEAR},
            "no layer has full attention",
        ),
    ],
)
def test_layers_that_cannot_be_served_are_refused_when_the_cache_is_made(kind, more, match):
    model = hf.AutoModelForCausalLM.from_config(
        getattr(hf, f"{kind}Config")(**SIZES, **more), dtype=torch.float32
    ).eval()
    before = model.config._attn_implementation
    with pytest.raises(CacheError, match=match):
        small(model)
    assert model.config._attn_implementation == before
