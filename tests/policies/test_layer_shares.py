"""Layers that share a budget by what they measure: the measures in loops, exact totals, rows of a batch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from sparsemm.errors import BudgetError
from sparsemm.policies import make_policy, row_attention
from sparsemm.policies.behind_image import BehindImage
from sparsemm.policies.layer_shares import layer_slots
from sparsemm.policies.meda import MEDA
from sparsemm.policies.policy import ModelShape
from sparsemm.policies.vl_cache import VLCache
from tests.policies.prompts import PADS, prompt_of, weights_of

LENGTH, HEADS = 19, 6
IMAGES = torch.zeros(2, LENGTH, dtype=torch.bool)
IMAGES[0, 3:9] = IMAGES[0, 11:13] = IMAGES[1, 8:12] = True
NONE = torch.zeros_like(IMAGES)


def behind(image, row):
    """Rows after the last image token, or all real ones."""
    last = max((j for j in range(LENGTH) if image is not None and image[row, j]), default=-1)
    return range(max(last + 1, PADS[row]), LENGTH)


def slow_density(prompt, row, threshold=0.01):
    dense = every = 0
    for head in range(HEADS):
        for i in behind(prompt.image, row):
            weights = weights_of(prompt, row, head, i)
            for j in range(PADS[row], i + 1):
                every += 1
                dense += bool(weights[j] >= threshold * weights.max())
    return dense / every


def slow_entropy(prompt, row):
    total, image = 0.0, prompt.image
    for head in range(HEADS):
        for i in range(PADS[row], LENGTH):
            weights = weights_of(prompt, row, head, i)
            for j in range(PADS[row], i + 1):
                if image is None or not image[row].any() or image[row, i] != image[row, j]:
                    total -= float(weights[j] * weights[j].log()) if weights[j] > 0 else 0.0
    return total / HEADS / (LENGTH - PADS[row])


@pytest.mark.parametrize("chunk", [1, 10**9])
@pytest.mark.parametrize("image", [IMAGES, NONE, None, torch.stack([IMAGES[0], NONE[0]])], ids=range(4))
def test_measures_are_those_of_the_formulas(monkeypatch, chunk, image):
    monkeypatch.setattr(row_attention, "CHUNK", chunk)
    prompt = replace(prompt_of(3, size=1.6), image=image)
    density = VLCache(budget=9, window=4, threshold=0.05).measure(prompt)
    entropy = MEDA(budget=9, window=4).measure(prompt)
    for row in range(2):
        assert float(density[row]) == pytest.approx(slow_density(prompt, row, 0.05), rel=1e-5)
        assert float(entropy[row]) == pytest.approx(slow_entropy(prompt, row), rel=1e-4)
        assert 0.1 < density[row] < 0.9  # the threshold separates something here


@pytest.mark.parametrize("image", [IMAGES, None], ids=["image", "none"])
def test_rows_behind_the_image_are_summed(image):
    prompt = replace(prompt_of(5), image=image)
    rated = BehindImage().rate(prompt)
    for row, pad in enumerate(PADS):
        for kv in range(3):
            heads = (2 * kv, 2 * kv + 1)
            want = sum(weights_of(prompt, row, head, i) for head in heads for i in behind(image, row)) / 2
            torch.testing.assert_close(rated[row, kv, pad:].double(), want[pad:], rtol=2e-4, atol=2e-6)


def test_a_prompt_that_ends_with_its_image_is_rated_by_its_last_row():
    image = torch.ones(2, LENGTH, dtype=torch.bool)
    prompt = replace(prompt_of(5), image=image)
    want = (weights_of(prompt, 0, 0, LENGTH - 1) + weights_of(prompt, 0, 1, LENGTH - 1)) / 2
    torch.testing.assert_close(BehindImage().rate(prompt)[0, 0].double(), want, rtol=2e-4, atol=2e-6)
    assert VLCache(budget=9, window=4).measure(prompt).isfinite().all()


@pytest.mark.parametrize("method", ["vl-cache", "meda"])
def test_layers_share_in_proportion_and_keep_the_total(method):
    policy = make_policy(method, 24, window=4).for_model(ModelShape.plain(4, 3, 3))
    measured = np.array([[0.1, 0.4, 0.2, 0.3], [0.25, 0.25, 0.25, 0.25]])
    slots = [policy.with_measured(measured).slots(layer, [500, 500], None) for layer in range(4)]
    weights = measured[0] if method == "vl-cache" else np.exp(measured[0]) / np.exp(measured[0]).sum()
    assert np.abs(np.stack(slots)[:, 0, 0] - 4 - 80 * weights).max() < 1
    assert np.stack(slots).sum(axis=(0, 2)).tolist() == [24 * 12] * 2
    assert (np.stack(slots)[:, 1] == 24).all()
    second = policy.with_measured(measured).for_rows([1])
    assert (second.slots(0, [500], None) == 24).all()
    assert (policy.slots(0, [500], None) == 24).all()  # nothing measured
    for length in range(1, 60):
        split = [policy.with_measured(measured).slots(layer, [length, 3], None) for layer in range(4)]
        assert np.stack(split)[:, 0].sum() == 12 * min(24, length) and np.stack(split).max() <= max(length, 3)


def test_a_layer_without_a_share_keeps_its_window():
    assert layer_slots(np.array([0.0, 1.0, 0.0]), 10, 4, 1000).tolist() == [4, 22, 4]
    assert layer_slots(np.zeros(3), 10, 4, 1000).tolist() == [10, 10, 10]
    assert layer_slots(np.array([0.0, 1.0, 0.0]), 10, 4, 12).tolist() == [9, 12, 9]


def test_an_impossible_threshold_is_refused():
    with pytest.raises(BudgetError, match="threshold is 2"):
        VLCache(budget=9, window=4, threshold=2)
