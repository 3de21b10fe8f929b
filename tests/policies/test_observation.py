"""Observation scores and selection against references written the slow way."""

from __future__ import annotations

import pytest
import torch

from sparsemm.policies.selector import Prompt, select
from sparsemm.policies.window_attention import WindowAttention


def slow_scores(q, k, real, window, kernel, scaling):
    """One row of one batch, one query head at a time; `real` is the first position that is not padding."""
    num_heads, length, _ = q.shape
    num_kv_heads = k.shape[0]
    result = torch.full((num_kv_heads, length), float("-inf"), dtype=torch.float32)
    for kv in range(num_kv_heads):
        total = torch.zeros(length, dtype=torch.float32)
        group = range(kv * num_heads // num_kv_heads, (kv + 1) * num_heads // num_kv_heads)
        for head in group:
            mean = torch.zeros(length, dtype=torch.float32)
            for row in range(length - window, length):
                logits = torch.tensor(
                    [float(q[head, row] @ k[kv, j]) * scaling for j in range(real, row + 1)], dtype=torch.float32
                )
                mean[real : row + 1] += torch.softmax(logits, 0) / window
            outside = mean[: length - window]
            for j in range(len(outside)):
                near = [outside[i] for i in range(j - kernel // 2, j + kernel // 2 + 1) if 0 <= i < len(outside)]
                total[j] += sum(near) / kernel / len(group)
        result[kv, real : length - window] = total[real : length - window]
    return result


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("pads", [(0, 0), (0, 6)])
def test_observe_equals_the_slow_way(kernel, pads):
    torch.manual_seed(kernel)
    q, k = torch.randn(2, 4, 19, 8, dtype=torch.float32), torch.randn(2, 2, 19, 8, dtype=torch.float32)
    valid = torch.arange(19) >= torch.tensor(pads)[:, None]
    got = WindowAttention(kernel).rate(Prompt(q, k, valid, 4, 0.3))
    for row in range(2):
        torch.testing.assert_close(got[row], slow_scores(q[row], k[row], pads[row], 4, kernel, 0.3))


def test_observe_of_a_prompt_shorter_than_the_window_is_all_window():
    query, key = torch.randn(2, 1, 2, 3, 4, dtype=torch.float32)
    got = WindowAttention().rate(Prompt(query, key, torch.ones(1, 3, dtype=torch.bool), 8, 1.0))
    assert torch.isneginf(got).all()


def slow_selection(scores, real, slots, window):
    length = scores.shape[-1]
    newest = list(range(length - 1, max(real, length - window) - 1, -1))
    best = sorted(range(real, max(real, length - window)), key=lambda j: (-float(scores[j]), j))
    return sorted((newest + best)[:slots])


@pytest.mark.parametrize("seed", range(5))
def test_select_equals_the_slow_way(seed):
    torch.manual_seed(seed)
    length, window = 15, 4
    pads = (0, 5)
    valid = torch.arange(length) >= torch.tensor(pads)[:, None]
    scores = torch.randint(0, 4, (2, 3, length)).float()  # many ties
    slots = torch.randint(0, length + 3, (2, 3))
    keep = select(scores, valid, slots, window)
    for row in range(2):
        for head in range(3):
            want = slow_selection(scores[row, head], pads[row], int(slots[row, head]), window)
            assert keep[row, head].nonzero().flatten().tolist() == want
