"""Prints tokens of every method under one default dtype of torch after the other, a JSON line each; run by tests.

A process of its own: where compiled code writes fp32 into a tensor of the default dtype, the process dies.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading

import numpy as np
import torch

from sparsemm.compat import define_missing_torchvision_operators

define_missing_torchvision_operators()
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

import sparsemm  # noqa: E402
from sparsemm.ops.argmax_rows import argmax_rows  # noqa: E402
from sparsemm.policies import METHODS, policy_class, selector_of  # noqa: E402

SIZES = dict(vocab_size=48, hidden_size=48, intermediate_size=32, num_hidden_layers=3, num_attention_heads=6)
CONFIG = LlamaConfig(num_key_value_heads=3, eos_token_id=None, pad_token_id=0, initializer_range=0.3, **SIZES)
SCORES = np.random.default_rng(5).random((3, 3))
ANY_LENGTH = [method for method in METHODS if not policy_class(method).whole_heads]
WAYS = [*((method, {}) for method in ANY_LENGTH), ("snapkv", {"storage": "int8"}), ("snapkv", {"storage": "fp8"})]
HELD = [method for method in ANY_LENGTH if method != "full" and selector_of(method).rates_answers]
WAYS += [(method, {"hold_budget": True}) for method in HELD]


def answers(model: LlamaForCausalLM) -> list[list[int]]:
    """Tokens of two padded prompts with every method, and where the chase's operation looks."""
    ids = torch.randint(3, 48, (2, 70), generator=torch.Generator().manual_seed(2), dtype=torch.int64)
    mask = torch.ones_like(ids)
    mask[1, :9] = 0
    said = []
    for method, options in WAYS:
        cache = sparsemm.compressed_cache(model, method, 24, SCORES, window=4, **options)
        asked = dict(input_ids=ids, attention_mask=mask, past_key_values=cache, do_sample=False)
        said.append(model.generate(**asked, max_new_tokens=10)[:, 70:].flatten().tolist())
    generator = torch.Generator().manual_seed(3)
    query, keys = (torch.randn(n, 30, 8, generator=generator, dtype=torch.float32) for n in (4, 2))
    ends = torch.arange(1, 31, dtype=torch.int64)
    return [*said, argmax_rows(query, keys, torch.zeros_like(ends), ends).flatten().tolist()]


def while_another_loads(model: LlamaForCausalLM) -> list[list[int]]:
    """`answers` while another thread is in the middle of from_pretrained(dtype=bfloat16)."""
    began, done = threading.Event(), threading.Event()

    class Slow(LlamaForCausalLM):
        def __init__(self, config: LlamaConfig) -> None:
            super().__init__(config)
            began.set()
            assert done.wait(120)

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        loading = threading.Thread(target=lambda: Slow.from_pretrained(folder, dtype=torch.bfloat16))
        loading.start()
        assert began.wait(60) and torch.get_default_dtype() == torch.bfloat16
        try:
            return answers(model)
        finally:
            done.set()
            loading.join()


if __name__ == "__main__":
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIG).eval()
    for name in sys.argv[1:]:
        torch.set_default_dtype(torch.float32 if name == "loading" else getattr(torch, name))
        result = while_another_loads(model) if name == "loading" else answers(model)
        print(json.dumps([name, result]), flush=True)
