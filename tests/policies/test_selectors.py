"""Every selector against its formula in fp64, a row, a head and a position at a time; padding changes nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sparsemm.errors import BudgetError
from sparsemm.policies import SELECTORS, make_policy, method_options, parts, row_attention, selector_of, summary_of
from sparsemm.policies.bacon import Bacon
from sparsemm.policies.behind_image import BehindImage
from sparsemm.policies.blend import BlendEcho, BlendPeak
from sparsemm.policies.critical import Critical
from sparsemm.policies.expected import ExpectedAttention
from sparsemm.policies.keydiff import KeyDiff
from sparsemm.policies.knorm import KeyNorm
from sparsemm.policies.kvzip import KVzip
from sparsemm.policies.mixkv import MixKV, mean_direction, rescaled
from sparsemm.policies.peak import Peak
from sparsemm.policies.selector import Prompt, Selector
from sparsemm.policies.snapkv import SnapKV
from sparsemm.policies.tova import LastRow
from sparsemm.policies.window_attention import UnpooledAttention, WindowAttention
from tests.policies.prompts import PADS, prompt_of, weights_of

LENGTH = 19
LAST = LENGTH - 4  # the window begins here


def pooled(values, pad, width):
    """An average over neighbours among the candidates of a row, divided by the full width."""
    out = torch.zeros_like(values)
    for j in range(pad, LAST):
        near = range(max(j - width // 2, pad), min(j + width // 2 + 1, LAST))
        out[j] = sum(values[i] for i in near) / width
    return out


def heads_of(prompt, kv):
    group = prompt.query.shape[1] // prompt.key.shape[1]
    return range(kv * group, (kv + 1) * group)


def observed(prompt, row, kv, width, rows=None):
    """O: mean over the last rows and the query group, then pooled."""
    rows = range(LAST, LENGTH) if rows is None else rows
    group = heads_of(prompt, kv)
    mean = sum(weights_of(prompt, row, head, i) for head in group for i in rows) / len(group) / len(rows)
    return pooled(mean, PADS[row], width)


def slow_unpooled(prompt, row, kv):
    return observed(prompt, row, kv, 1)


def slow_accumulated(prompt, row, kv):
    heads = heads_of(prompt, kv)
    return sum(weights_of(prompt, row, head, i) for head in heads for i in range(PADS[row], LENGTH)) / len(heads)


def slow_tova(prompt, row, kv):
    heads = prompt.query.shape[1]
    return sum(weights_of(prompt, row, head, LENGTH - 1) for head in range(heads)) / heads


def slow_knorm(prompt, row, kv):
    return -prompt.key[row, kv].double().square().sum(-1).sqrt()


def slow_keydiff(prompt, row, kv):
    keys = prompt.key[row, kv].double()
    direction = [keys[j] / keys[j].norm() for j in range(LENGTH)]
    mean = sum(direction[PADS[row] :]) / (LENGTH - PADS[row])
    return torch.stack([-(one @ mean) / mean.norm() for one in direction])


def brought(values, like, pad):
    """m(x): by minimum and maximum to [0, 1], then to the mean of O."""
    inside = values[pad:LAST]
    share = torch.zeros_like(values)
    share[pad:LAST] = (inside - inside.min()) / (inside.max() - inside.min())
    return share * like[pad:LAST].mean() / share[pad:LAST].mean()


def slow_mixkv(prompt, row, kv):
    pad = PADS[row]
    attention = observed(prompt, row, kv, 5)
    keys = torch.nn.functional.normalize(prompt.key[row, kv, pad:].double(), dim=-1)
    pairs = [float(keys[i] @ keys[j]) for i in range(len(keys)) for j in range(len(keys)) if i != j]
    r = min(max(sum(pairs) / len(pairs), 0.0), 1.0)
    size = prompt.value[row, kv].double().norm(dim=-1)
    importance = attention + brought(size, attention, pad)
    return (1 - r) * importance + r * brought(slow_keydiff(prompt, row, kv), attention, pad)


def slow_bacon(prompt, row, kv):
    pad = PADS[row]
    attention = observed(prompt, row, kv, 5)
    excess = (observed(prompt, row, kv, 5, [LENGTH - 1]) - attention).clamp(min=0)
    asked = excess + pooled(excess, pad, 5)
    if near := [prompt.scratch[at][row, kv] for at in prompt.scratch if prompt.layer - 4 <= at < prompt.layer]:
        asked = asked + sum(near).double() / len(near)
    if not asked.any():  # the last row asks for nothing that the window does not see
        return attention
    number = 2 * (prompt.budget - prompt.window)
    best, others = (one[pad:LAST].sort(descending=True).values[:number] for one in (attention, asked))
    factor = 0.5 * best.std(unbiased=False) / others.std(unbiased=False) * min(max(others.mean() / best.mean(), 0), 1)
    return attention + factor * asked


def slow_expected(prompt, row, kv):
    pad = PADS[row]
    keys, s = prompt.key[row, kv].double(), prompt.scaling
    total = torch.zeros(LENGTH, dtype=torch.float64)
    for head in heads_of(prompt, kv):
        queries = prompt.query[row, head, pad + 4 :].double()
        mean = queries.mean(0)
        covariance = sum(torch.outer(q - mean, q - mean) for q in queries) / len(queries)
        logits = torch.stack([s * mean @ keys[j] + s * s / 2 * keys[j] @ covariance @ keys[j] for j in range(LENGTH)])
        total[pad:] += torch.softmax(logits[pad:], 0) / len(heads_of(prompt, kv))
    total = total * prompt.value[row, kv].double().norm(dim=-1)
    total[pad : pad + 4] = torch.finfo(torch.float32).max
    return total


def slow_blend(prompt, row, kv, causal):
    attention = slow_unpooled(prompt, row, kv)
    most = torch.zeros(LENGTH, dtype=torch.float64)
    for head in heads_of(prompt, kv):
        for i in range(PADS[row], LENGTH):
            most = torch.maximum(most, weights_of(prompt, row, head, i, causal))
    return attention + brought(most, attention, PADS[row])


def slow_kvzip(prompt, row, kv):
    return prompt.replay[row, kv].double()


SLOW = {
    KVzip(): slow_kvzip,
    BlendEcho(): lambda *a: slow_blend(*a, causal=False),
    BlendPeak(): lambda *a: slow_blend(*a, causal=True),
    UnpooledAttention(): slow_unpooled,
    BehindImage(): slow_accumulated,
    Critical(): slow_unpooled,
    LastRow(): slow_tova,
    KeyNorm(): slow_knorm,
    KeyDiff(): slow_keydiff,
    MixKV(): slow_mixkv,
    Bacon(): slow_bacon,
    ExpectedAttention(): slow_expected,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("selector", SLOW, ids=lambda one: type(one).__name__)
def test_it_rates_as_its_formula_says(selector, seed, dtype):
    prompt = prompt_of(seed, dtype=dtype)
    prompt = replace(prompt, key=prompt.key + 0.7 * (seed + 1))  # keys that are alike: r of MixKV is not 0
    got = selector.rate(prompt)
    assert got.dtype == torch.float32 and got.shape == prompt.key.shape[:3]
    for row, pad in enumerate(PADS):
        assert torch.isneginf(got[row, :, :pad]).all()
        for kv in range(prompt.key.shape[1]):
            want = SLOW[selector](prompt, row, kv)[pad:LAST]
            torch.testing.assert_close(got[row, kv, pad:LAST].double(), want, rtol=2e-4, atol=2e-6)


def test_bacon_looks_back_on_four_layers():
    selector, scratch, found = Bacon(), {}, []
    for layer in range(6):
        prompt = replace(prompt_of(layer), layer=layer, scratch=scratch)
        before = dict(scratch)
        assert sorted(before) == list(range(max(0, layer - 4), layer))
        got = selector.rate(prompt)
        want = slow_bacon(replace(prompt, scratch=before), 1, 2)
        torch.testing.assert_close(got[1, 2, PADS[1] : LAST].double(), want[PADS[1] : LAST], rtol=2e-4, atol=2e-6)
        found.append(torch.equal(got, selector.rate(replace(prompt, scratch={}))))
    assert found == [True] + [False] * 5


def slow_critical(prompt, row, kv, slots):
    """The positions a head keeps outside the window."""
    pad = PADS[row]
    attention = slow_unpooled(prompt, row, kv)
    norms = torch.zeros(LENGTH, dtype=torch.float64)
    group = prompt.projection.shape[2]
    for g in range(group):
        norms += (prompt.value[row, kv].double() @ prompt.projection[0, kv, g].double()).abs().sum(-1) / group
    left = list(range(pad, LAST))
    kept = sorted(left, key=lambda j: (-float(attention[j]), j))[: (slots - 4) // 2]
    left = [j for j in left if j not in kept]
    kept += sorted(left, key=lambda j: (-float((attention[j] + 1e-4) * norms[j]), j))[: slots - 4 - len(kept)]
    return sorted(kept)


@pytest.mark.parametrize("chunk", [1, 10**9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_critical_takes_half_by_attention_and_half_by_what_values_carry(monkeypatch, chunk, dtype):
    from sparsemm.policies.selector import select

    monkeypatch.setattr(row_attention, "CHUNK", chunk)
    prompt = prompt_of(11, dtype=dtype, size=1.5)
    slots = torch.tensor([[9, 4, 12], [6, 5, 30]])
    worth = Critical().rate(prompt)
    refined = Critical().refine(worth, slots, prompt)
    keep = select(refined, prompt.valid, slots, prompt.window)
    differs = 0
    for row in range(2):
        for kv in range(3):
            held = min(int(slots[row, kv]), LENGTH - PADS[row])
            want = slow_critical(prompt, row, kv, held)
            assert keep[row, kv].nonzero().flatten().tolist() == want + list(range(LAST, LENGTH))
            differs += not torch.equal(keep[row, kv], select(worth, prompt.valid, slots, prompt.window)[row, kv])
    assert differs  # what values carry decides something here


@pytest.mark.parametrize("name", SELECTORS)
def test_a_padded_row_is_rated_and_refined_as_it_would_be_alone(name):
    selector = selector_of(f"snapkv+{name}")
    prompt = prompt_of(13)
    slots = torch.tensor([[9, 6, 12], [6, 5, 9]])
    together = selector.refine(selector.rate(prompt), slots, prompt)
    for row, pad in enumerate(PADS):
        one = slice(row, row + 1), slice(None), slice(pad, None)
        alone = replace(
            prompt,
            query=prompt.query[one],
            key=prompt.key[one],
            value=prompt.value[one],
            valid=prompt.valid[row : row + 1, pad:],
            replay=prompt.replay[one],
            scratch={},
        )
        want = selector.refine(selector.rate(alone), slots[row : row + 1], alone)
        inside = slice(row, row + 1), slice(None), slice(pad, LAST)
        torch.testing.assert_close(together[inside], want[..., : LAST - pad], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", SELECTORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_equal_keys_and_values_are_no_nan(name, dtype):
    """Norms without a spread, keys all alike, one token, no budget beyond the window, all zeros."""
    selector = selector_of(f"snapkv+{name}")
    for size, length, valid_from in ((1.0, 12, 0), (1.0, 12, 11), (1.0, 1, 0), (0.0, 12, 3), (200.0, 12, 0)):
        query, key = (size * torch.ones(1, heads, length, 8, dtype=dtype) for heads in (4, 2))
        valid = torch.arange(length)[None] >= valid_from
        prompt = Prompt(query, key, valid, 4, 0.3, key, torch.ones(1, 2, 2, 8, 6, dtype=dtype), 4)
        prompt = replace(prompt, replay=torch.full((1, 2, length), size, dtype=torch.float32))
        worth = selector.rate(prompt)
        refined = selector.refine(worth, torch.full((1, 2), 4), prompt)
        assert not worth.isnan().any() and not refined.isnan().any()
        assert not torch.isposinf(worth).any() and not torch.isposinf(refined).any()


def test_what_tells_nothing_apart_counts_nothing():
    fp32 = {"dtype": torch.float32}
    like, among = torch.rand(1, 1, 6, **fp32), torch.tensor([[[True, True, True, True, False, False]]])
    nothing = torch.zeros(1, 1, 6, **fp32)
    assert torch.equal(rescaled(torch.full((1, 1, 6), 3.0, **fp32), like, among), nothing)
    assert torch.equal(rescaled(like, like, torch.zeros_like(among)), nothing)
    scaled = rescaled(torch.tensor([[[1.0, 2.0, 3.0, 1.0, 99.0, -99.0]]], **fp32), like, among)
    torch.testing.assert_close(scaled[0, 0, :4].mean(), like[0, 0, :4].mean())
    keys = torch.ones(1, 1, 6, 4, **fp32)
    unlike, alike = mean_direction(Prompt(keys, keys, torch.ones(1, 6, dtype=torch.bool), 2, 1.0))
    torch.testing.assert_close(unlike, -torch.ones(1, 1, 6, **fp32))
    torch.testing.assert_close(alike, torch.ones(1, 1, 1, **fp32))


# Names.


def test_a_name_says_policy_and_selector():
    policy = make_policy("snapkv+peak", 64, rows=16, window=8)
    assert policy == SnapKV(budget=64, window=8, selector=Peak(rows=16))
    assert parts("adakv") == ("adakv", None) and parts("adakv+mixkv") == ("adakv", "mixkv")
    assert method_options("snapkv+peak") == {"window", "rows", "pool"}
    assert method_options("snapkv") == {"window", "selector", "pooling_kernel"}
    assert make_policy("snapkv+snapkv", 64) == make_policy("snapkv", 64)
    assert make_policy("snapkv", 64, selector=Peak(), rows=3).selector == Peak(rows=3)
    assert selector_of("h2o").every_row and isinstance(selector_of("h2o+snapkv"), WindowAttention)


@pytest.mark.parametrize(
    ("method", "options", "what"),
    [
        ("sparsemm+peek", {}, "selector 'peek' is unknown, did you mean peak.*use one of snapkv, unpooled, peak"),
        ("sparsemn+peak", {}, "method 'sparsemn' is unknown, did you mean sparsemm"),
        ("sparsemm+", {}, "selector '' is unknown"),
        ("sparsemm+peak+echo", {}, "selector 'peak.echo' is unknown"),
        ("full+peak", {}, "full keeps every position"),
        ("snapkv+peak", {"pooling_kernel": 5}, "no option pooling_kernel.*has pool, rows, window"),
        ("snapkv+unpooled", {"pooling_kernel": 5}, "no option pooling_kernel"),
        ("snapkv+peak", {"selector": Peak()}, "no option selector"),
        ("snapkv+blend-peak", {"rows": -3}, "rows is -3"),
        ("snapkv", {"selector": Peak(), "pooling_kernel": 5}, "no option pooling_kernel"),
    ],
)
def test_impossible_names_and_options_are_refused(method, options, what):
    with pytest.raises(BudgetError, match=what):
        make_policy(method, 64, **options)


def test_every_selector_is_summed_up_and_has_a_row_in_the_docs():
    from pathlib import Path

    text = (Path(__file__).parents[2] / "docs" / "cache.md").read_text(encoding="utf-8")
    summaries = {summary_of(f"adakv+{name}") for name in SELECTORS}
    assert len(summaries) == len(SELECTORS)
    for name in SELECTORS:
        assert f"\n| `{name}` |" in text
        assert isinstance(selector_of(f"adakv+{name}"), Selector)
