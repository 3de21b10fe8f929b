"""A text model of random weights whose attention differs between positions, and ways to run it."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import sparsemm

SHAPE = (4, 6, 3)  # layers, query heads, KV heads
SIZES = dict(
    vocab_size=48,
    hidden_size=48,
    intermediate_size=32,
    num_hidden_layers=SHAPE[0],
    num_attention_heads=SHAPE[1],
    num_key_value_heads=SHAPE[2],
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=None,
    initializer_range=0.3,
)
SCORES = np.random.default_rng(5).random((SHAPE[0], SHAPE[2])) ** 3


@lru_cache
def _text_model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM._from_config(LlamaConfig(**SIZES), dtype=torch.float32).eval()


class Lab:
    """Shorthands of the tests: `lab.model`, `lab.ids(...)`, `lab.cache(...)`, `lab.run(...)`."""

    sizes, shape, scores = SIZES, SHAPE, SCORES
    heads = SHAPE[0] * SHAPE[2]

    def __init__(self, model):
        self.model = model

    @staticmethod
    def ids(batch=2, length=30, seed=1):
        return torch.randint(2, 48, (batch, length), generator=torch.Generator().manual_seed(seed))

    def cache(self, method="snapkv", budget=9, scores=SCORES, **options):
        return sparsemm.compressed_cache(self.model, method, budget, scores, **({"window": 4} | options))

    @torch.no_grad()
    def run(self, cache, tokens, mask=None):
        return self.model(input_ids=tokens, attention_mask=mask, past_key_values=cache, use_cache=True).logits

    @torch.no_grad()
    def generate(self, tokens, cache, new=12, **options):
        options = {"do_sample": False, "attention_mask": (tokens > 0).long()} | options
        return self.model.generate(input_ids=tokens, past_key_values=cache, max_new_tokens=new, **options)


@pytest.fixture
def lab():
    _text_model().set_attn_implementation("sdpa")
    return Lab(_text_model())
