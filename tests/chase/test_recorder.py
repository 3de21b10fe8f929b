"""Where heads look: the argmax as computed the slow way."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsemm.attention_probe import AttentionCall
from sparsemm.chase import strongest_keys
from sparsemm.chase.strongest_keys import Recorder, visible_keys
from sparsemm.errors import ModelError


def call_of(query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None = None) -> AttentionCall:
    """An attention call that is only looked at."""
    return AttentionCall(0, query, key, key, 1.0, mask, lambda query: (query, None))


def argmax(query: torch.Tensor, key: torch.Tensor, rows: list[int], mask: torch.Tensor | None) -> torch.Tensor:
    """What a recorder of one sample writes down."""
    first = 0 if mask is None else int(mask[rows[-1]].byte().argmax()) if rows else 0
    recorder = Recorder([rows], [(first, query.shape[1])])
    recorder(call_of(query[None], key[None], None if mask is None else mask[None, None]))
    return recorder.positions[0]


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


@settings(max_examples=40)
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
        visible_keys(mask, torch.tensor([4, 5]))


def test_half_precision_products_are_not_rounded() -> None:
    # In bf16 the two logits, 256 and 256 + 1, round to the same number.
    query = torch.tensor([[[16.0, 1.0]] * 3], dtype=torch.bfloat16)
    key = torch.tensor([[[16.0, 0.0], [16.0, 1.0], [0.0, 0.0]]], dtype=torch.bfloat16)
    assert argmax(query, key, [2], None).tolist() == [[1]]


def test_no_rows_give_an_empty_result() -> None:
    found = argmax(torch.randn(4, 5, 2), torch.randn(2, 5, 2), [], None)
    assert found.shape == (4, 0) and found.dtype == torch.int64


def test_a_longer_key_than_query_is_refused() -> None:
    query, key = torch.randn(1, 2, 1, 4), torch.randn(1, 2, 5, 4)
    with pytest.raises(ModelError, match="without a cache"):
        Recorder([[0]], [(0, 1)])(call_of(query, key))


def test_rows_of_a_mask_are_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = torch.ones(9, 9, dtype=torch.bool).tril().triu(-3)  # a sliding window
    monkeypatch.setattr(strongest_keys, "MOST_MASK_ENTRIES", 2 * 9)
    begins, ends = visible_keys(mask, torch.tensor([8, 0, 3, 4, 5]))
    assert begins.tolist() == [5, 0, 0, 1, 2] and ends.tolist() == [9, 1, 4, 5, 6]
