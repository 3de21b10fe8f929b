"""Later turns that are compressed again: exact totals, and the choice against loops."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from sparsemm.cache.turns import clip_slots, compress_again
from sparsemm.policies import selector_of
from tests.cache.reading import read_padded
from tests.policies.making import ANY_LENGTH

COMPRESSED = [method for method in ANY_LENGTH if method != "full" and selector_of(method).rates_turns]


@pytest.mark.parametrize("method", COMPRESSED)
@pytest.mark.parametrize("lengths", [(30, 20), (5, 3, 2, 6, 2, 9), (8, 2, 30, 4), (2, 2, 2)])
def test_the_total_is_exact_after_every_turn(lab, method, lengths):
    cache, tokens, seen = lab.cache(method, 12, recompress=True), lab.ids(length=99), 0
    for turn, length in enumerate(lengths):
        lab.run(cache, tokens[:, seen : seen + length])
        seen += length
        assert cache.kept_slots().tolist() == [lab.heads * min(12, seen)] * 2
        assert cache.get_seq_length() == seen
        for _ in range(turn):  # an answer, kept whole until the next turn
            lab.run(cache, tokens[:, seen : seen + 1])
            seen += 1
        held = min(12, seen - turn) + turn
        assert cache.kept_slots().tolist() == [lab.heads * held] * 2


@pytest.mark.parametrize("method", ["snapkv", "adakv", "sparsemm-adaptive", "streaming", "h2o"])
def test_a_padded_row_of_a_turn_is_compressed_like_the_row_alone(lab, method):
    prompt, turn = lab.ids(), lab.ids(length=9, seed=2)
    turn[0, :6] = 0
    mask = torch.cat([torch.ones_like(prompt), (turn > 0).long()], dim=1)
    together = lab.cache(method, recompress=True)
    lab.run(together, prompt)
    lab.run(together, turn, mask)
    got = lab.run(together, prompt[:, :1], torch.nn.functional.pad(mask, (0, 1), value=1))[:, -1]
    for row, start in ((0, 6), (1, 0)):
        alone = lab.cache(method, recompress=True)
        lab.run(alone, prompt[row : row + 1])
        with torch.no_grad():  # the padded batch counts its padding as positions
            ids, positions = turn[row : row + 1, start:], torch.arange(30 + start, 39)[None]
            lab.model(input_ids=ids, position_ids=positions, past_key_values=alone, use_cache=True)
        assert torch.equal(torch.stack(alone.budgets())[:, 0], torch.stack(together.budgets())[:, row])
        positions = torch.tensor([[39]])
        with torch.no_grad():
            want = lab.model(
                input_ids=prompt[row : row + 1, :1], position_ids=positions, past_key_values=alone, use_cache=True
            ).logits[:, -1]
        torch.testing.assert_close(got[row : row + 1], want, rtol=1e-4, atol=1e-4)


def test_the_choice_equals_the_slow_way(lab, monkeypatch):
    """SnapKV over what one layer kept, with loops: softmax over the head's own rows, pool, best of them, window."""
    cache = lab.cache(recompress=True)
    lab.run(cache, lab.ids(batch=1))
    before = copy.deepcopy(cache)
    seen = {}
    layer = cache.ragged[0]

    def spy(layer, query, valid, scaling):
        seen.setdefault("query", query.clone())  # of the first layer
        compress_again(layer, query, valid, scaling)

    monkeypatch.setattr("sparsemm.cache.attention.compress_again", spy)
    turn = lab.ids(batch=1, length=6, seed=3)
    lab.run(cache, turn)
    plain = copy.deepcopy(before)
    plain.ragged[0].recompress = False
    lab.run(plain, turn)  # the same rows, not compressed
    keys, _, real = read_padded(plain.ragged[0].slab)
    got, _, kept = read_padded(layer.slab)
    for head in range(3):
        rows = keys[0, head][real[0, head]].double().numpy()
        n, mean = len(rows), np.zeros(len(rows))
        score = np.zeros(n)
        for one in (2 * head, 2 * head + 1):
            mean = np.zeros(n)
            for t in range(2, 6):
                logits = rows[: n - 5 + t] @ seen["query"][0, one, t].double().numpy() * 8**-0.5
                weights = np.exp(logits - logits.max())
                mean[: n - 5 + t] += weights / weights.sum() / 4
            outside = mean[: n - 4]
            for j in range(n - 4):
                score[j] += sum(outside[max(j - 2, 0) : j + 3]) / 5 / 2
        best = sorted(range(n - 4), key=lambda j: (-score[j], j))[:5]  # noqa: B023
        want = rows[sorted(best) + list(range(n - 4, n))]
        np.testing.assert_allclose(got[0, head][kept[0, head]].numpy(), want, rtol=1e-6)


def test_tokens_after_a_compressed_turn_with_padding_can_be_taken_back(lab):
    prompt, turn = lab.ids(), lab.ids(length=9, seed=2)
    turn[0, :6] = 0
    mask = torch.cat([torch.ones_like(prompt), (turn > 0).long()], dim=1)
    cache = lab.cache(recompress=True)
    lab.run(cache, prompt)
    lab.run(cache, turn, mask)
    lab.run(cache, prompt[:, :1])
    cache.crop(-1)
    assert cache.kept_slots().tolist() == [lab.heads * 9] * 2


def test_full_is_never_compressed_again(lab):
    cache, tokens = lab.cache("full", recompress=True), lab.ids()
    lab.run(cache, tokens)
    lab.run(cache, tokens)
    assert cache.kept_slots().tolist() == [lab.heads * 60] * 2


@pytest.mark.parametrize("slots", [[9, 1, 2], [4, 5, 3], [9, 9, 9], [2, 2, 2]])
@pytest.mark.parametrize("available", [[4, 9, 9], [4, 5, 3]])
@pytest.mark.parametrize("total", [6, 11, 12])
def test_what_a_head_does_not_have_goes_to_the_others(slots, available, total):
    got = clip_slots(np.array(slots), total, np.array(available), 2)
    assert (got <= available).all() and (got >= 2).all() and got.sum() == total
    if sum(slots) == total and all(a <= b for a, b in zip(slots, available, strict=True)):
        assert got.tolist() == slots


def test_generate_over_three_turns_holds_the_budget(lab):
    cache, tokens = lab.cache("sparsemm", 12, recompress=True), lab.ids()
    for turn in range(3):
        out = lab.generate(tokens, cache, new=5, attention_mask=torch.ones_like(tokens))
        assert cache.kept_slots().tolist() == [lab.heads * (12 + 4)] * 2
        assert cache.get_seq_length() == tokens.shape[1] + 4
        tokens = torch.cat([out, lab.ids(length=7, seed=turn)], dim=1)
