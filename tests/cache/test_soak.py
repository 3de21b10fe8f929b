"""Hundreds of generates of changing shapes, methods, budgets and options: no wrong token, no slot too many, no leak."""

from __future__ import annotations

import gc
import random

import pytest
import torch
from transformers import AttentionInterface, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tests.cache.reading import read_padded
from tests.policies.making import MERGING, UNTOLD

ROUNDS = 300
KEEPING = [method for method in UNTOLD if method not in MERGING]  # the reference hides what was evicted
KEPT: list[torch.Tensor] = []  # what the reference hides: per layer (B, Hkv, S) bool


def hiding(module, query, key, value, attention_mask, **options):
    """Attention over everything in one forward, where rows behind the prompt see only what was kept of it."""
    kept = KEPT[module.layer_idx]
    length, prompt = key.shape[2], kept.shape[-1]
    at = torch.arange(length)
    mask = attention_mask & torch.ones(1, kept.shape[1], 1, 1, dtype=torch.bool)
    hidden = torch.nn.functional.pad(~kept, (0, length - prompt))
    mask = mask & ~(hidden[:, :, None] & (at >= prompt)[:, None])
    mask = mask.repeat_interleave(query.shape[1] // mask.shape[1], 1)
    return sdpa_attention_forward(module, query, key, value, mask, **options)


AttentionInterface.register("test_soak_hiding", hiding)


def spied(cache):
    """The cache, noting in KEPT where its rows lay in the prompt."""
    KEPT.clear()

    def compress(layer, query, key, value, mask, scaling):
        type(layer).compress(layer, query, key, value, mask, scaling)
        keys, _, valid = read_padded(layer.slab)
        same = (key[:, :, :, None] == keys[:, :, None]).all(-1) & valid[:, :, None]
        KEPT.append(same.any(-1))

    for layer in cache.ragged:
        layer.compress = compress.__get__(layer)
    return cache


@torch.no_grad()
def right_tokens(lab, out, mask, new):
    """Whether every new token of `out` (B, S + new) is the reference's own best, to rounding."""
    lab.model.set_attn_implementation("test_soak_hiding")
    rows = torch.cat([mask, torch.ones(len(out), new, dtype=mask.dtype)], dim=1)
    whole = (torch.ones(rows.shape[1], rows.shape[1], dtype=torch.bool).tril() & rows[:, None].bool())[:, None]
    positions = (rows.cumsum(-1) - 1).clamp(min=0)
    logits = lab.model(input_ids=out, attention_mask=whole, position_ids=positions, use_cache=False).logits
    lab.model.set_attn_implementation("sdpa")
    start = out.shape[1] - new
    said = logits[:, start - 1 : -1].gather(-1, out[:, start:, None])[..., 0]
    return bool((said >= logits[:, start - 1 : -1].amax(-1) - 1e-3).all())


def live():
    """How many tensors there are."""
    gc.collect()
    return sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())


def one_round(lab, draw):
    batch, longest, new = draw.randint(1, 5), draw.randint(2, 48), draw.randint(1, 12)
    lengths = [draw.randint(1, longest) for _ in range(batch - 1)] + [longest]
    tokens = torch.randint(2, 48, (batch, longest), generator=torch.Generator().manual_seed(draw.randint(0, 10**9)))
    mask = (torch.arange(longest) >= longest - torch.tensor(lengths)[:, None]).long()
    tokens = tokens * mask
    method, window = draw.choice(KEEPING), draw.randint(1, 5)
    budget = draw.randint(window, 40)
    options = draw.choice([{}, {"max_new_tokens": new}, {"prompt_length": longest}])
    chunks = {"prefill_chunk_size": draw.randint(1, longest)} if "prompt_length" in options else {}
    cache = lab.cache(method, budget, window=window, **options)
    out = lab.generate(tokens, spied(cache), new, min_new_tokens=new, attention_mask=mask, **chunks)
    where = f"{method} {budget=} {window=} {lengths=} {options} {chunks} {new=}"
    wanted = [lab.heads * ((n if method == "full" else min(n, budget)) + new - 1) for n in lengths]
    assert cache.kept_slots().tolist() == wanted, where
    assert cache.kept_bytes() == sum(wanted) * 2 * 8 * 4 <= cache.slab_bytes(), where
    assert right_tokens(lab, out, mask, new), where
    if method == "full" or budget >= longest:
        own = lab.generate(tokens, DynamicCache(), new, min_new_tokens=new, attention_mask=mask)
        assert torch.equal(out, own), where
    return batch, longest, method


def a_conversation(lab, draw):
    """Turns under options that have no reference, for their totals and places."""
    batch, budget = draw.randint(1, 3), draw.randint(6, 20)
    method = draw.choice([m for m in KEEPING if m != "full"])
    first = draw.randint(budget, 30)
    room = {"max_new_tokens": 4 + 4 * 34}  # of the longest conversation
    options = draw.choice([{"recompress": True}, {"hold_budget": True}, {"recompress": True} | room])
    options = options | {"storage": draw.choice(["model", "int8", "fp8"])}
    chunk = draw.choice([first, draw.randint(1, first)])
    if chunk < first:
        options["prompt_length"] = first
    cache, seen = lab.cache(method, budget, **options), 0
    for turn in range(draw.randint(2, 5)):
        length = first if turn == 0 else draw.randint(2, 30)
        tokens = torch.randint(2, 48, (batch, length + 4))
        for start in range(0, length, chunk if turn == 0 else length):
            lab.run(cache, tokens[:, start : min(start + chunk, length)] if turn == 0 else tokens[:, :length])
        for at in range(4):
            logits = lab.run(cache, tokens[:, length + at : length + at + 1])
        seen += length + 4
        decoded = 0 if "hold_budget" in options else 4
        assert cache.kept_slots().tolist() == [lab.heads * (budget + decoded)] * batch, (method, options)
        assert cache.get_seq_length() == seen
        assert torch.isfinite(logits).all()
        if batch > 1 and draw.random() < 0.3:
            cache.batch_select_indices(torch.tensor([batch - 1]))
            batch = 1


def test_soak(lab):
    draw = random.Random(4)
    shapes = set()
    for number in range(ROUNDS):
        if number == 30:
            KEPT.clear()
            before = live()
        shapes.add(one_round(lab, draw))
        if number % 5 == 0:
            a_conversation(lab, draw)
    KEPT.clear()
    assert live() <= before
    assert len(shapes) > ROUNDS / 2 and {shape[2] for shape in shapes} == set(KEEPING)


@pytest.mark.parametrize("method", ["snapkv", "sparsemm"])
def test_the_reference_sees_a_wrong_token(lab, method):
    tokens = lab.ids()
    mask = torch.ones_like(tokens)
    out = lab.generate(tokens, spied(lab.cache(method, 8)), 6)
    assert right_tokens(lab, out, mask, 6)
    KEPT[:] = [torch.ones_like(kept) for kept in KEPT]
    assert not right_tokens(lab, out, mask, 6)  # a full cache says something else
