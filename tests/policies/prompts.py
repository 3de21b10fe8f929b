"""Random prompts to rate, and one row's attention written the slow way."""

from __future__ import annotations

import torch

from sparsemm.policies.selector import Prompt

PADS = (0, 6)
SCALING = 0.4


def prompt_of(seed, heads=6, kv_heads=3, length=19, dim=8, window=4, dtype=torch.float32, size=1.0, hidden=24):
    """Two rows, one of them padded; everything that a selector may look at is there."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return size * torch.randn(*shape, dtype=torch.float32, generator=generator)

    batch = len(PADS)
    query, key, value = (draw(batch, n, length, dim).to(dtype) for n in (heads, kv_heads, kv_heads))
    valid = torch.arange(length) >= torch.tensor(PADS)[:, None]
    projection = draw(1, kv_heads, heads // kv_heads, dim, hidden).to(dtype)
    replay = torch.rand(key.shape[:3], dtype=torch.float32, generator=generator)
    return Prompt(query, key, valid, window, SCALING, value, projection, budget=window + 3, replay=replay)


def weights_of(prompt, row, head, i, causal=True):
    """(S,) fp64: what row i of one query head of one batch row looks at; zero for keys it does not see."""
    length = prompt.key.shape[2]
    kv = head * prompt.key.shape[1] // prompt.query.shape[1]
    first = length - prompt.query.shape[2]
    seen = [j for j in range(length) if prompt.valid[row, j] and (j <= i or not causal)]
    keys = prompt.key[row, kv].double()
    query = prompt.query[row, head, i - first].double()
    logits = torch.stack([(query * keys[j]).sum() for j in seen]) * prompt.scaling
    weights = torch.zeros(length, dtype=torch.float64)
    weights[seen] = torch.softmax(logits, 0)
    return weights
