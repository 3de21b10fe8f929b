"""Attention weights of a prompt's rows, a chunk of rows at a time, so that no (S, S) tensor exists."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from sparsemm.policies.selector import Prompt

CHUNK = 1 << 24  # logits held at once


def row_attention(
    prompt: Prompt, rows: torch.Tensor | None = None, causal: bool = True
) -> Iterator[tuple[torch.Tensor, int]]:
    """Yields A = softmax(q k^T * scaling) in fp32, of real rows over real keys; zero for rows of padding.

    Args:
        prompt: has the queries of all these rows.
        rows: (B, N) int64 positions of the rows; None means all rows that the prompt has queries of.
        causal: whether a row attends only to keys up to itself.

    Yields:
        (B, Hkv, G, rows of this chunk, end) fp32 and `end`: keys behind it are seen by no row of the chunk.
    """
    query, key, valid = prompt.query, prompt.key, prompt.valid
    batch, num_heads, count, _ = query.shape
    length = key.shape[2]
    first = length - count  # position of the first row
    if rows is not None:
        index = (rows - first)[:, None, :, None].expand(-1, num_heads, -1, query.shape[-1])
        query, count = query.gather(2, index), rows.shape[1]
    grouped = query.unflatten(1, (key.shape[1], -1))
    at = torch.arange(length, dtype=torch.int64, device=key.device)
    step = max(CHUNK // max(batch * num_heads * length, 1), 1)
    for start in range(0, count, step):
        stop = min(start + step, count)
        end = first + stop if causal and rows is None else length
        here = at[None, first + start : first + stop] if rows is None else rows[:, start:stop]
        part = grouped[..., start:stop, :].float()
        logits = torch.einsum("bhgrd,bhkd->bhgrk", part, key[:, :, :end].float()) * prompt.scaling
        seen = valid.gather(1, here.expand(batch, -1))[..., None] & valid[:, None, :end]
        if causal:
            seen = seen & (at[:end] <= here[..., None])
        yield torch.softmax(logits.masked_fill(~seen[:, None, None], float("-inf")), dim=-1).nan_to_num(0.0), end


def grown(total: torch.Tensor | None, prompt: Prompt) -> torch.Tensor:
    """Returns a copy of `total` (B, Hkv, S') fp32 with zeros behind it for all S keys of the prompt: (B, Hkv, S)."""
    result = torch.zeros(prompt.key.shape[:3], dtype=torch.float32, device=prompt.key.device)
    if total is not None:
        result[..., : total.shape[-1]] = total
    return result
