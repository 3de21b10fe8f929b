"""Pictures are drawn of small local checkpoints only; the others say why not."""

from __future__ import annotations

import numpy as np

from sparsemm.layouts.tokens import ImageTokens
from sparsemm.params import ModelParams
from sparsemm.report import looking


def entry(checkpoint):
    return ModelParams(checkpoint=str(checkpoint), family="qwen2_vl")


def test_what_is_not_small_and_local_is_not_loaded(tmp_path):
    assert "not a local folder" in looking.too_much_to_load(entry("Some/Model-7B"))
    with open(tmp_path / "model.safetensors", "wb") as handle:
        handle.truncate(looking.MOST_BYTES)  # sparse: takes no space
    assert looking.too_much_to_load(entry(tmp_path)) is None
    (tmp_path / "more.safetensors").write_bytes(b"x")
    assert "256 MiB" in looking.too_much_to_load(entry(tmp_path))


def test_attention_is_split_between_page_and_thumbnail():
    """Positions 1..2 are the thumbnail, 3..6 the grid; the rest of the prompt is not drawn."""
    attention = np.array([0.1, 0.3, 0.1, 0.2, 0.05, 0.0, 0.0, 0.25])
    small = ImageTokens(np.array([1, 2]), np.array([[0.0, 0, 4, 4], [4, 0, 8, 4]]), (1, 2), (8, 4))
    cells = np.array([[x, 0.0, x + 2, 4] for x in (0, 2, 4, 6)])
    found = looking.view("t", ImageTokens(np.array([3, 4, 5, 6]), cells, (1, 4), (8, 4), small), attention)
    assert found.title == "t\nattention: 25% page, 40% thumbnail"
    assert found.attention.tolist() == [0.2, 0.05, 0.0, 0.0, 0.3, 0.1] and found.rectangles.shape == (6, 4)
    assert found.coarse.tolist() == [False] * 4 + [True] * 2
    alone = looking.view("t", ImageTokens(np.array([3, 4, 5, 6]), cells, (1, 4), (8, 4)), attention)
    assert alone.title == "t\nattention: 25% page" and not alone.coarse.any()
