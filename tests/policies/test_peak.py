"""Peak and echo against loops over rows and heads in fp64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sparsemm.errors import BudgetError
from sparsemm.policies import make_policy, row_attention
from sparsemm.policies.behind_image import BehindImage
from sparsemm.policies.blend import BlendEcho, BlendPeak
from sparsemm.policies.echo import Echo
from sparsemm.policies.h2o import AccumulatedAttention
from sparsemm.policies.peak import Peak, spread
from sparsemm.policies.selector import Prompt
from sparsemm.policies.window_attention import WindowAttention
from tests.policies.prompts import PADS, prompt_of, weights_of


def slow_peak(prompt, row, causal=True, rows=None):
    """(Hkv, S) fp64: the largest weight of each position over rows and query group, one at a time."""
    num_kv_heads, length = prompt.key.shape[1:3]
    most = torch.zeros(num_kv_heads, length, dtype=torch.float64)
    for head in range(prompt.query.shape[1]):
        for i in rows or range(length - int(prompt.valid[row].sum()), length):
            kv = head * num_kv_heads // prompt.query.shape[1]
            most[kv] = torch.maximum(most[kv], weights_of(prompt, row, head, i, causal))
    return most


def check(worth, prompt, want):
    for row in range(len(PADS)):
        real = prompt.valid[row]
        assert torch.isneginf(worth[row, :, ~real]).all()
        torch.testing.assert_close(worth[row, :, real].double(), want(row)[:, real], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 200, 10**9])
@pytest.mark.parametrize("selector", [Peak(), Echo()])
def test_it_is_the_largest_weight_of_any_row(monkeypatch, chunk, selector):
    monkeypatch.setattr(row_attention, "CHUNK", chunk)
    prompt = prompt_of(seed=3)
    check(selector.rate(prompt), prompt, lambda row: slow_peak(prompt, row, selector.causal))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_rated_in_fp32(dtype):
    prompt = prompt_of(seed=4, dtype=dtype, size=6.0)  # a softmax of such logits overflows without their maximum
    worth = Peak().rate(prompt)
    assert worth.dtype == torch.float32
    check(worth, prompt, lambda row: slow_peak(prompt, row))


@pytest.mark.parametrize("selector", [Peak(rows=5), Echo(rows=5)])
@pytest.mark.parametrize("chunk", [1, 10**9])
def test_a_sample_of_rows_is_spread_over_the_real_ones(monkeypatch, selector, chunk):
    monkeypatch.setattr(row_attention, "CHUNK", chunk)
    prompt = prompt_of(seed=5)
    length = prompt.valid.shape[1]
    rows = spread(prompt, 5)
    for row, pad in enumerate(PADS):
        count = length - pad
        assert rows[row].tolist() == [pad + -(-i * count // 5) - 1 for i in range(1, 6)]
        assert rows[row, -1] == length - 1
    check(selector.rate(prompt), prompt, lambda row: slow_peak(prompt, row, selector.causal, rows[row].tolist()))
    assert spread(prompt, length) is None and torch.equal(Peak(rows=length).rate(prompt), Peak().rate(prompt))


def test_more_rows_than_a_padded_prompt_has_are_all_of_them():
    prompt = prompt_of(seed=6)
    short = len(prompt.valid[1]) - PADS[1]
    assert short < short + 3 < prompt.valid.shape[1]
    got = Peak(rows=short + 3).rate(prompt)[1]
    torch.testing.assert_close(got, Peak().rate(prompt)[1])


@pytest.mark.parametrize("selector", [Peak(), Echo(), Peak(rows=4), Peak(pool=3), Echo(rows=3, pool=5)])
def test_a_padded_row_is_rated_as_it_would_be_alone(selector):
    prompt = prompt_of(seed=7)
    worth = selector.rate(prompt)
    for row, pad in enumerate(PADS):
        one = slice(row, row + 1), slice(None), slice(pad, None)
        alone = Prompt(prompt.query[one], prompt.key[one], prompt.valid[row : row + 1, pad:], prompt.window, 0.4)
        torch.testing.assert_close(worth[one], selector.rate(alone))


def test_pooling_is_over_neighbours_before_the_window():
    prompt = prompt_of(seed=8)
    plain, got = Peak().rate(prompt), Peak(pool=3).rate(prompt)
    last = prompt.valid.shape[1] - prompt.window
    for row, pad in enumerate(PADS):
        for j in range(pad, last):
            near = [plain[row, :, i] for i in (j - 1, j, j + 1) if pad <= i < last]
            torch.testing.assert_close(got[row, :, j], sum(near) / 3)


def test_rows_of_a_later_turn_are_the_newest_positions():
    prompt = prompt_of(seed=9)
    later = Prompt(prompt.query[:, :, -6:], prompt.key, prompt.valid, prompt.window, 0.4)
    length = prompt.valid.shape[1]
    for selector in (Peak(), Echo(), Peak(rows=6)):
        want = lambda row, s=selector: slow_peak(prompt, row, s.causal, list(range(length - 6, length)))  # noqa: E731
        check(selector.rate(later), later, want)
    assert spread(later, 3)[0].tolist() == [length - 5, length - 3, length - 1]


def test_every_token_of_an_answer_adds_to_the_maximum():
    worth, weights = torch.tensor([0.5, 0.1, 0.0]), torch.tensor([0.2, 0.3, 0.4])
    age = since = torch.ones(3, dtype=torch.int32)
    torch.testing.assert_close(Peak().update(worth, weights, age, since, 2), torch.tensor([0.5, 0.3, 0.4]))


def test_no_square_tensor_is_made(monkeypatch):
    monkeypatch.setattr(row_attention, "CHUNK", 1 << 16)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            nonlocal largest
            out = op(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    q, k = torch.randn(1, 2, 2048, 8, dtype=torch.float32), torch.randn(1, 1, 2048, 8, dtype=torch.float32)
    with Watch():
        Echo().rate(Prompt(q, k, torch.ones(1, 2048, dtype=torch.bool), 32, 0.5))
    assert largest <= 1 << 16


@pytest.mark.parametrize("options", [{"rows": -1}, {"rows": 1.5}, {"pool": 2}, {"pool": 0}, {"pool": "3"}])
def test_impossible_options_are_refused(options):
    with pytest.raises(BudgetError, match=f"{next(iter(options))} is"):
        Peak(**options)


@pytest.mark.parametrize("selector", [Peak(), Peak(pool=3), BlendPeak(), AccumulatedAttention()], ids=str)
@pytest.mark.parametrize("ends", [(19,), (1, 2, 19), (5, 6, 13, 19)])
def test_chunk_by_chunk_it_rates_as_at_once(selector, ends):
    """A row of padding alone, as in the first chunks of the second row, leaves nothing behind."""
    prompt = prompt_of(seed=6)
    total, start = None, 0
    for end in ends:
        chunk = {"query": prompt.query[:, :, start:end], "key": prompt.key[:, :, :end], "valid": prompt.valid[:, :end]}
        some = replace(prompt, **chunk)
        total, start = selector.accumulate(total, some), end
        assert total.shape == some.key.shape[:3]
    last = replace(prompt, query=prompt.query[:, :, -4:], accumulated=total)
    torch.testing.assert_close(selector.rate(last), selector.rate(prompt), rtol=1e-6, atol=1e-7)
    assert selector.accumulates


def test_what_needs_the_whole_prompt_is_not_accumulated():
    for selector in (Echo(), Peak(rows=4), BlendEcho(), BlendPeak(rows=4), BehindImage(), WindowAttention()):
        assert not selector.accumulates
    with pytest.raises(NotImplementedError):
        WindowAttention().accumulate(None, prompt_of(seed=6))
    assert make_policy("sparsemm+peak", 9, 1, window=4).accumulates
    assert not make_policy("meda+peak", 9, window=4).accumulates  # its measure needs every row at the end
