"""bf16 products with fp32 weights and attention: what is computed in which, and that it trains."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from sparsemm.training import architectures, scratch, train
from sparsemm.training.architectures import QwenSizes
from sparsemm.training.precision import autocast, exact_attention

NAME = "small-qwen2-vl"


@pytest.mark.parametrize("masked", [False, True])
def test_attention_stays_in_fp32_under_autocast(masked: bool) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 9, 16).unbind()
    module: Any = SimpleNamespace(is_causal=not masked, num_key_value_groups=1)
    mask = torch.randn(2, 1, 9, 9).bfloat16() if masked else None
    want = F.scaled_dot_product_attention(
        query, key, value, attn_mask=None if mask is None else mask.float(), is_causal=not masked
    )
    with autocast("cpu", "bf16"):
        got, _ = exact_attention(module, query, key, value, mask)
        rounded = F.scaled_dot_product_attention(query, key, value, is_causal=not masked)
        product = query @ key.transpose(2, 3)
    assert torch.equal(got.transpose(1, 2), want) and got.dtype == torch.float32
    assert rounded.dtype == product.dtype == torch.bfloat16
    with autocast("cpu", "fp32"):
        assert (query @ key.transpose(2, 3)).dtype == torch.float32


def test_training_in_bf16_moves_fp32_weights_almost_as_fp32_does(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(architectures.QWEN_SIZES, NAME, QwenSizes(4, 4, 32, 32, (2, 1, 1), 1, 32))
    monkeypatch.setattr(scratch, "VISION_STEPS", 1)
    kept: dict[str, dict[str, torch.Tensor]] = {}

    def keep(name: str, model: Any, _processor: Any, _output: Any) -> None:
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        kept[name] = {key: p.detach().clone() for key, p in model.named_parameters()}

    for precision in ("fp32", "bf16"):
        monkeypatch.setattr(scratch, "save", partial(keep, precision))
        told = train.train(NAME, tmp_path / precision, steps=3, batch_size=4, precision=precision)
        assert told["precision"] == precision
    start = dict(architectures.build(NAME)[0].named_parameters())
    moved = {
        name: torch.cat([(weights[key] - start[key]).flatten() for key in start]).detach()
        for name, weights in kept.items()
    }
    assert not torch.equal(moved["fp32"], moved["bf16"])
    assert F.cosine_similarity(moved["fp32"], moved["bf16"], dim=0) > 0.9
