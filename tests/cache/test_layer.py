"""One layer of the cache: what every method keeps, and what turns, crops and copies do to it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import (
    DiffLlamaConfig,
    DiffLlamaForCausalLM,
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    MistralConfig,
    MistralForCausalLM,
)

from sparsemm import compressed_cache
from sparsemm.budgets import allocate, allocate_paper
from sparsemm.cache.layer import RaggedLayer
from sparsemm.cache.pending import Pending
from sparsemm.errors import CacheError, ScoreTableError
from sparsemm.models import fingerprint
from sparsemm.policies import policy_class
from sparsemm.policies.selector import Selector
from sparsemm.scores import ScoreTable
from tests.cache.reading import read_padded
from tests.policies.making import ANY_LENGTH, policy_for

L, HQ, H, S, W, B, KERNEL = 4, 6, 3, 26, 4, 9, 5  # as the lab has them, a prompt of S, and the width of the pool
COMPRESSED = [method for method in ANY_LENGTH if method != "full"]


# What is kept: everything below is written with loops over rows, heads and positions.


def slow_scores(method, q, k, real):
    """(H, S) scores of one row by loops; `real` is the first position that is not padding."""
    if method == "streaming":
        return np.array([[1000 - j if j < real + 4 else j for j in range(S)]] * H, dtype=float)
    out = np.zeros((H, S))
    if method in ("h2o", "look-m", "elasticcache"):
        for head in range(HQ):
            kv = head * H // HQ
            for row in range(real, S):
                logits = (k[kv, real : row + 1] @ q[head, row] / np.sqrt(q.shape[-1])).astype(np.float64)
                weights = np.exp(logits - logits.max())
                out[kv, real : row + 1] += weights / weights.sum() / (HQ // H)
        return np.tile(out.mean(axis=0), (H, 1)) if method == "elasticcache" else out
    for kv in range(H):
        for head in range(kv * HQ // H, (kv + 1) * HQ // H):
            mean = np.zeros(S)
            for row in range(S - W, S):
                logits = (k[kv, real : row + 1] @ q[head, row] / np.sqrt(q.shape[-1])).astype(np.float64)
                weights = np.exp(logits - logits.max())
                mean[real : row + 1] += weights / weights.sum() / W
            for j in range(real, S - W):
                near = [mean[i] for i in range(max(j - KERNEL // 2, 0), min(j + KERNEL // 2 + 1, S - W))]
                out[kv, j] += sum(near) / KERNEL / (HQ // H)
    return out


def whole(shares, total):
    """Largest remainder, ties to the lowest index."""
    exact = [share / sum(shares) * total for share in shares]
    out = [int(value) for value in exact]
    order = sorted(range(len(out)), key=lambda i: (-(exact[i] - out[i]), i))
    for i in order[: total - sum(out)]:
        out[i] += 1
    return out


def slow_slots(method, layer, scores, length, table):
    """Slots of every KV head of a layer, for prompts so long that nothing overflows."""
    base = B - W
    if method in ("snapkv", "streaming", "h2o", "look-m", "elasticcache"):
        return [B] * H
    if method == "headkv":  # of 5 slots beyond the window 5 // 1.5 = 3 are in the pool
        return [W + 2 + n for n in np.reshape(whole(table.ravel(), 3 * table.size), table.shape)[layer]]
    if method == "pyramidkv":
        top, bottom = 2 * base - base / 20, base / 20
        return [W + whole([top + (bottom - top) * i / (L - 1) for i in range(L)], base * L)[layer]] * H
    ranked = [h for _, h in sorted((-scores[h, j], h) for h in range(H) for j in range(S - length, S - W))]
    if method == "adakv":
        count = [ranked[: base * H].count(i) for i in range(H)]
        return [W + n for n in whole([0.2 * base + 0.8 * c for c in count], base * H)]
    static = allocate(np.random.default_rng(7).random((L, H)) if method == "random" else table, B, W, 0.1, length)[
        layer
    ].tolist()
    if method == "sparsemm-adaptive":
        total = sum(static) - W * H
        count = [ranked[:total].count(i) for i in range(H)]
        return [W + n for n in whole([0.5 * (b - W) + 0.5 * c for b, c in zip(static, count, strict=True)], total)]
    return static


@pytest.mark.parametrize("method", [one for one in COMPRESSED if not policy_class(one).measures])
@pytest.mark.parametrize("layer", [0, 3])
def test_kept_positions_equal_the_slow_way(lab, monkeypatch, method, layer):
    torch.manual_seed(layer)
    query, key = 2 * torch.randn(2, HQ, S, 8, dtype=torch.float32), torch.randn(2, H, S, 8, dtype=torch.float32)
    value = torch.arange(S, dtype=torch.float32)[None, None, :, None].expand(2, H, S, 8)  # says where it came from
    pads = [0, 5]
    real = torch.arange(S) >= torch.tensor(pads)[:, None]
    mask = (torch.ones(S, S, dtype=torch.bool).tril() & real[:, None])[:, None]
    ragged = RaggedLayer(
        layer, policy_for(method, L, H, B, W, lab.scores, **({"seed": 7} if method == "random" else {}))
    )
    monkeypatch.setattr(type(ragged.policy.selector), "merge", Selector.merge)  # tests/policies/test_merging.py
    ragged.update(key, value)
    ragged.compress(query, key, value, mask, 8**-0.5)
    _, kept, valid = read_padded(ragged.slab)
    for row, pad in enumerate(pads):
        scores = slow_scores(method, query[row].numpy(), key[row].numpy(), pad)
        slots = slow_slots(method, layer, scores, S - pad, lab.scores)
        assert ragged.slots[row].tolist() == slots
        for head in range(H):
            best = sorted(range(pad, S - W), key=lambda j: (-scores[head, j], j))[: slots[head] - W]  # noqa: B023
            assert kept[row, head][valid[row, head]][:, 0].tolist() == sorted(best) + list(range(S - W, S))


# Turns, batches, crops, copies.


@pytest.mark.parametrize("method", ANY_LENGTH)
def test_a_padded_row_decodes_like_the_row_alone(lab, method):
    tokens = lab.ids()
    tokens[0, :7] = 0
    cache, mask = lab.cache(method), (tokens > 0).long()
    together = [lab.run(cache, tokens, mask)[:, -1]]
    for step in range(3):
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        together.append(lab.run(cache, tokens[:, 10 + step : 11 + step], mask)[:, -1])
    alone = lab.cache(method)
    want = [lab.run(alone, tokens[:1, 7:])[:, -1]]
    want += [lab.run(alone, tokens[:1, 10 + step : 11 + step])[:, -1] for step in range(3)]
    torch.testing.assert_close(torch.stack(together)[:, :1], torch.stack(want), rtol=1e-4, atol=1e-4)
    assert [int(b[0].sum()) for b in cache.budgets()] == [int(b[0].sum()) for b in alone.budgets()]


@pytest.mark.parametrize("turn", [[[0, 0, 5, 6], [7, 8, 9, 10]], [[0], [9]]])
def test_padding_of_a_later_turn_is_not_kept(lab, turn):
    prompt, turn = lab.ids(), torch.tensor(turn)
    mask = torch.cat([torch.ones_like(prompt), (turn > 0).long()], dim=1)
    cache = lab.cache("full")
    lab.run(cache, prompt)
    got = lab.run(cache, turn, mask)[:, -1]
    assert cache.kept_slots().tolist() == [L * H * (30 + int((row > 0).sum())) for row in turn]
    assert cache.get_seq_length() == 30 + turn.shape[1]
    own = DynamicCache()
    lab.run(own, prompt)
    torch.testing.assert_close(got[1], lab.run(own, turn, mask)[1, -1], rtol=1e-4, atol=1e-4)
    with pytest.raises(CacheError, match="padding"):
        cache.crop(-1)


def test_a_later_turn_padded_on_the_right_is_refused(lab):
    prompt = lab.ids()
    cache = lab.cache()
    lab.run(cache, prompt)
    mask = torch.ones(2, 33, dtype=torch.long)
    mask[0, -1] = 0
    with pytest.raises(CacheError, match="left"):
        lab.run(cache, prompt[:, :3], mask)


def test_another_batch_is_refused(lab):
    cache = lab.cache()
    lab.run(cache, lab.ids())
    with pytest.raises(CacheError, match="batch of 1 rows after a prompt of 2"):
        lab.run(cache, lab.ids()[:1, :1])


def test_padding_of_one_row_is_forgotten_with_the_row(lab):
    tokens, turn = lab.ids(), lab.ids()[:, 5:9].clone()
    turn[1, :2] = 0
    mask = torch.cat([torch.ones_like(tokens), (turn > 0).long()], dim=1)
    cache = lab.cache()
    lab.run(cache, tokens)
    lab.run(cache, turn, mask)
    lab.run(cache, tokens[:, :1], torch.nn.functional.pad(mask, (0, 1), value=1))
    with pytest.raises(CacheError, match="padding"):
        copy.deepcopy(cache).crop(-1)
    cache.batch_select_indices(torch.tensor([0]))
    cache.crop(-5)
    assert cache.kept_slots().tolist() == [L * H * B]


def test_crop_undoes_turns_exactly_and_refuses_sizes(lab):
    cache, tokens = lab.cache(), lab.ids()
    lab.run(cache, tokens)
    want = lab.run(copy.deepcopy(cache), tokens[:, :2])
    lab.run(cache, tokens[:, 5:10])
    cache.crop(0)
    assert cache.get_seq_length() == 35
    cache.crop(-5)
    assert torch.equal(lab.run(cache, tokens[:, :2]), want)
    with pytest.raises(CacheError, match="negative"):
        cache.crop(4)


def test_a_copy_goes_its_own_way(lab):
    cache, tokens = lab.cache(), lab.ids()
    lab.run(cache, tokens)
    other = copy.deepcopy(cache)
    lab.run(other, tokens[:, :1])
    assert cache.kept_slots().tolist() == [L * H * B] * 2
    assert other.kept_slots().tolist() == [L * H * (B + 1)] * 2


def test_reset_forgets_the_prompt(lab):
    cache, tokens = lab.cache(), lab.ids()
    want = lab.run(cache, tokens)
    cache.reset()
    assert cache.get_seq_length() == 0
    with pytest.raises(CacheError, match="the cache is empty"):
        cache.kept_slots()
    assert torch.equal(lab.run(cache, tokens), want)


def test_rows_are_repeated_and_selected_with_their_budgets(lab):
    cache, tokens = lab.cache("adakv"), lab.ids()
    lab.run(cache, tokens)
    rows, budgets = [0, 0, 1, 1], [b.clone() for b in cache.budgets()]
    want = lab.run(copy.deepcopy(cache), tokens[:, :1])
    cache.batch_repeat_interleave(2)
    assert all(torch.equal(new, old[rows]) for new, old in zip(cache.budgets(), budgets, strict=True))
    cache.batch_select_indices(torch.tensor([False, True, True, False]))
    torch.testing.assert_close(lab.run(cache, tokens[:, :1]), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [[2], [-3], [], [0.0], [True], [True, False, True]])
@pytest.mark.parametrize("options", [{}, {"hold_budget": True}, {"prompt_length": 40}])
def test_rows_that_are_not_there_are_refused_and_nothing_changes(lab, options, rows):
    caches = [lab.cache(**options) for _ in range(2)]
    for cache in caches:
        lab.run(cache, lab.ids())
    with pytest.raises(CacheError, match="batch rows"):
        caches[0].batch_select_indices(torch.tensor(rows))
    one, other = (lab.run(cache, lab.ids(length=10)) for cache in caches)
    assert torch.equal(one, other)


def test_a_prompt_read_in_inference_mode_can_be_continued_outside(lab):
    cache, tokens = lab.cache(), lab.ids()
    with torch.inference_mode():
        lab.run(cache, tokens)
    lab.run(cache, tokens[:, :1])
    assert cache.kept_slots().tolist() == [L * H * (B + 1)] * 2


def test_paper_mode_reports_what_it_keeps_of_a_prompt_of_exactly_the_budget(lab):
    cache = lab.cache("sparsemm", 30, mode="paper")
    lab.run(cache, lab.ids())
    want = allocate_paper(lab.scores, 30, W, 0.1, 30)
    assert want.sum() < L * H * 30
    assert np.array_equal(torch.stack(cache.budgets())[:, 0].numpy(), want)
    assert cache.kept_slots().tolist() == [want.sum()] * 2


def test_half_precision_is_held_in_half_precision(lab):
    half = type(lab)(copy.deepcopy(lab.model).bfloat16())
    cache = half.cache("adakv")
    assert half.run(cache, lab.ids()).dtype == torch.bfloat16
    assert cache.kept_bytes() == 2 * L * H * B * 2 * 8 * 2


# Models and settings.


def test_a_text_model_is_served_too(lab):
    cache = lab.cache()
    lab.run(cache, lab.ids())
    assert cache.kept_slots().tolist() == [L * H * B] * 2


def test_a_score_table_serves_its_own_model_only(lab):
    per_sample = np.random.default_rng(0).random((2, L, HQ))
    header = {"model": "m", "revision": "r", "fingerprint": fingerprint(lab.model.config), "num_kv_heads": H}
    table = ScoreTable.from_samples(per_sample, np.zeros((L, HQ), np.int64), header)
    cache, same = (lab.cache("sparsemm", scores=s) for s in (table, table.to_kv(H)))
    lab.run(cache, lab.ids())
    lab.run(same, lab.ids())  # the fingerprint does not change with the attention
    assert torch.equal(torch.stack(cache.budgets()), torch.stack(same.budgets()))
    table.header["fingerprint"] = "another"
    with pytest.raises(ScoreTableError, match="another config"):
        lab.cache("sparsemm", scores=table)


@pytest.mark.parametrize("changed", [{}, {"num_hidden_layers": L + 1}, {"num_key_value_heads": 1}])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_the_cache_of_another_model_is_refused(lab, implementation, changed):
    cache = lab.cache()
    other = type(lab)(LlamaForCausalLM._from_config(LlamaConfig(**lab.sizes | changed), dtype=torch.float32).eval())
    other.model.set_attn_implementation(implementation)
    other.cache()
    for model in (other, lab, other):
        if model is other:
            with pytest.raises(CacheError, match="another model"):
                model.run(cache, lab.ids())
        else:
            cache.reset()
            assert torch.equal(model.run(cache, lab.ids()), model.run(lab.cache(), lab.ids()))


@pytest.mark.parametrize(
    "use",
    [
        lambda pending: torch.chunk(pending, 2, dim=1),
        lambda pending: torch.cat([pending, pending]),
        lambda pending: F.scaled_dot_product_attention(pending, pending, pending),
        lambda pending: torch.ones(2) * pending,
        lambda pending: pending * torch.ones(2),
        lambda pending: pending @ pending,
        lambda pending: pending[:, :, 0],
        lambda pending: pending.shape,
        lambda pending: pending.transpose(1, 2),
        len,
        list,
    ],
)
def test_keys_that_are_not_there_yet_are_no_tensor(use):
    with pytest.raises(CacheError, match="computes with keys itself"):
        use(Pending(None, torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1), None))


def test_a_model_that_computes_with_values_before_its_attention_is_refused():
    sizes = {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    model = DiffLlamaForCausalLM(DiffLlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)).eval()
    with pytest.raises(CacheError, match="DiffLlama") as raised:
        model(torch.ones(1, 12, dtype=torch.int64), past_key_values=compressed_cache(model, "snapkv", 8, window=4))
    assert raised.value.hint


def test_a_row_of_padding_only_is_told_so(lab):
    mask = torch.ones(2, 20, dtype=torch.int64)
    mask[1] = 0
    with pytest.raises(CacheError, match=r"layer 0: row 1 is padding only \(leave the row out"):
        lab.model(lab.ids()[:, :20], attention_mask=mask, past_key_values=lab.cache())
    mask[1, :10] = 1
    with pytest.raises(CacheError, match=r"newest token of row 1 is padding \(pad on the left"):
        lab.model(lab.ids()[:, :20], attention_mask=mask, past_key_values=lab.cache())


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"num_hidden_layers": L + 1}, "more layers"),
        ({"num_hidden_layers": L - 1}, "broke off"),
        ({"num_key_value_heads": 1}, "KV heads"),
    ],
)
def test_a_model_that_has_changed_is_refused(lab, changed, match):
    model = LlamaForCausalLM._from_config(LlamaConfig(**lab.sizes), dtype=torch.float32).eval()
    cache = type(lab)(model).cache()
    model.config.update(changed)
    model.model = LlamaModel._from_config(model.config, dtype=torch.float32).eval()
    with pytest.raises(CacheError, match=match):
        for _ in range(2):
            lab.run.__func__(type(lab)(model), cache, lab.ids())


def test_a_cache_whose_forward_broke_off_is_refused_until_it_is_reset(lab):
    cache, tokens = lab.cache(), lab.ids()
    want = lab.run(lab.cache(), tokens)

    def fail(*_):
        raise MemoryError

    hook = lab.model.model.layers[2].register_forward_pre_hook(fail)
    with pytest.raises(MemoryError):
        lab.run(cache, tokens)
    hook.remove()
    with pytest.raises(CacheError, match="broke off"):
        lab.run(cache, tokens)
    cache.reset()
    assert torch.equal(lab.run(cache, tokens), want)


@pytest.mark.parametrize("options", [{}, {"hold_budget": True}, {"storage": "int8"}])
def test_under_autocast_it_is_held_and_served_in_its_dtype(lab, options):
    tokens, step = lab.ids(), lab.ids(length=1)
    cache = lab.cache(budget=40, **options)
    with torch.autocast("cpu", torch.bfloat16):
        got = lab.run(cache, tokens), lab.run(cache, step)
        own = DynamicCache()
        want = lab.run(own, tokens), lab.run(own, step)
    atol = 0.1 if options.get("storage") else 0.05  # int8 rounds on top of bf16
    torch.testing.assert_close(got, want, rtol=0.05, atol=atol)
    assert cache.kept_bytes() == 2 * 31 * lab.heads * 2 * (8 * 2 if not options.get("storage") else 8 + 4)
    with pytest.raises(CacheError, match=r"float32 after a prompt in torch\.bfloat16"):
        lab.run(cache, step)


def test_sliding_windows_are_refused(lab):
    sliding = MistralForCausalLM._from_config(MistralConfig(sliding_window=8, **lab.sizes), dtype=torch.float32)
    with pytest.raises(CacheError, match="full-attention"):
        type(lab)(sliding).cache()
