"""The chase's attention function: the same outputs as sdpa, the argmax as computed the slow way."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsemm.chase import attention
from sparsemm.chase.attention import Recorder, chase_attention, recording, seen_keys
from sparsemm.errors import ModelError


def argmax(query: torch.Tensor, key: torch.Tensor, rows: list[int], mask: torch.Tensor | None) -> torch.Tensor:
    """What a recorder of one sample writes down."""
    first = 0 if mask is None else int(mask[rows[-1]].byte().argmax()) if rows else 0
    recorder = Recorder([rows], [(first, query.shape[1])])
    return attention._record(recorder, query[None], key[None], None if mask is None else mask[None, None])


def slow(query: torch.Tensor, key: torch.Tensor, rows: list[int], mask: torch.Tensor | None) -> torch.Tensor:
    """Head by head, row by row, softmax included."""
    group = query.shape[0] // key.shape[0]
    found = torch.empty(query.shape[0], len(rows), dtype=torch.int64)
    for h in range(query.shape[0]):
        for t, row in enumerate(rows):
            best, best_at = -1.0, -1
            logits = key[h // group].double() @ query[h, row].double()
            seen = [j for j in range(key.shape[1]) if (j <= row if mask is None else bool(mask[row, j]))]
            weights = torch.softmax(logits[seen], dim=0)
            for j, weight in zip(seen, weights.tolist(), strict=True):
                if weight > best:
                    best, best_at = weight, j
            found[h, t] = best_at
    return found


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 12), st.integers(0, 4), st.booleans(), st.integers(0, 999))
def test_argmax_is_that_of_the_slow_loop(kv: int, group: int, length: int, pads: int, masked: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    pads = min(pads, length - 1)
    query = torch.randn(kv * group, length, 6, generator=generator)
    key = torch.randn(kv, length, 6, generator=generator)
    mask = torch.ones(length, length, dtype=torch.bool).tril() if masked else None
    if mask is not None:
        mask[:, :pads] = False
    rows = list(range(pads if masked else 0, length))
    assert torch.equal(argmax(query, key, rows, mask), slow(query, key, rows, mask))


def test_a_mask_with_gaps_is_refused() -> None:
    query, key, mask = torch.randn(2, 6, 4), torch.randn(2, 6, 4), torch.ones(6, 6, dtype=torch.bool).tril()
    mask[5, 2] = False
    assert argmax(query, key, [4], mask).shape == (2, 1)
    with pytest.raises(ModelError, match="gaps"):
        seen_keys(mask, torch.tensor([4, 5]))


def test_half_precision_products_are_not_rounded() -> None:
    # In bf16 the two logits, 256 and 256 + 1, round to the same number.
    query = torch.tensor([[[16.0, 1.0]] * 3], dtype=torch.bfloat16)
    key = torch.tensor([[[16.0, 0.0], [16.0, 1.0], [0.0, 0.0]]], dtype=torch.bfloat16)
    assert argmax(query, key, [2], None).tolist() == [[1]]


def test_no_rows_give_an_empty_result() -> None:
    found = argmax(torch.randn(4, 5, 2), torch.randn(2, 5, 2), [], None)
    assert found.shape == (4, 0) and found.dtype == torch.int64


def test_a_longer_key_than_query_is_refused() -> None:
    module = torch.nn.Module()
    module.layer_idx = 0  # type: ignore[assignment]
    query, key = torch.randn(1, 2, 1, 4), torch.randn(1, 2, 5, 4)
    token = attention._recorder.set(attention.Recorder([[0]], [(0, 1)]))
    try:
        with pytest.raises(ModelError, match="without a cache"):
            chase_attention(module, query, key, key, None)
    finally:
        attention._recorder.reset(token)
    out, _ = chase_attention(module, query, key, key, None)  # not recording: plain sdpa
    assert out.shape == (1, 1, 2, 4)


@pytest.mark.parametrize("name", ["tiny-llava-next-mistral", "tiny-qwen2-vl"])
def test_recording_switches_the_language_model_alone_and_restores_it(tiny, name: str) -> None:  # type: ignore[no-untyped-def]
    model, _ = tiny(name)
    config = model.config
    before = config._attn_implementation, config.text_config._attn_implementation
    vision = config.vision_config._attn_implementation
    with pytest.raises(RuntimeError, match="stop"), recording(model, [[0]], [(0, 1)]) as recorder:
        assert config.text_config._attn_implementation == attention.NAME
        assert config.vision_config._attn_implementation == vision
        assert attention._recorder.get() is recorder
        raise RuntimeError("stop")
    assert (config._attn_implementation, config.text_config._attn_implementation) == before
    assert attention._recorder.get() is None


def test_rows_of_a_mask_are_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = torch.ones(9, 9, dtype=torch.bool).tril().triu(-3)  # a sliding window
    monkeypatch.setattr(attention, "MOST_SEEN", 2 * 9)
    begins, ends = seen_keys(mask, torch.tensor([8, 0, 3, 4, 5]))
    assert begins.tolist() == [5, 0, 0, 1, 2] and ends.tolist() == [9, 1, 4, 5, 6]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_attention_is_that_of_a_mask(side: str) -> None:
    length, pads = 7, [0, 2, 2, 3, 0]
    spans = [(n, length) if side == "left" else (0, length - n) for n in pads]
    query, key, value = (torch.randn(5, heads, length, 4) for heads in (4, 2, 2))
    module = torch.nn.Module()
    module.layer_idx, module.is_causal, module.num_key_value_groups = 0, True, 2  # type: ignore[assignment]
    token = attention._recorder.set(Recorder([[span[0]] for span in spans], spans))
    try:
        assert attention.chase_mask(batch_size=5, q_length=length, kv_length=length) is None
        out, _ = chase_attention(module, query, key, value, None)
    finally:
        attention._recorder.reset(token)
    for b, (first, stop) in enumerate(spans):
        at = slice(b, b + 1), slice(None), slice(first, stop)
        alone, _ = chase_attention(module, query[at], key[at], value[at], None)
        torch.testing.assert_close(out[b, first:stop], alone[0])
        assert not out[b, :first].any() and not out[b, stop:].any()


def test_masks_that_are_not_causal_are_those_of_sdpa() -> None:
    window = {"batch_size": 1, "q_length": 6, "kv_length": 6, "local_size": 2, "allow_is_causal_skip": False}
    token = attention._recorder.set(Recorder([[0]], [(0, 6)]))
    try:
        mask = attention.chase_mask(**window)
    finally:
        attention._recorder.reset(token)
    assert mask is not None and mask.shape == (1, 1, 6, 6)
    assert attention.chase_mask(**window) is not None  # not recording
