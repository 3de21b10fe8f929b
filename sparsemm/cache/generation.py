"""Greedy answers after a prefill; rows that have ended leave the batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from sparsemm.compat import cache_argument

if TYPE_CHECKING:
    from sparsemm.cache.compressed import CompressedCache

ROUND_TOKENS = 16  # tokens between two checks which rows have ended
COMPACT_BELOW = 0.75  # ended rows leave the batch, which copies the cache, once at most this share of rows is left


class Ended(StoppingCriteria):
    """Stops the rows, (B,) bool, that had ended before this generation began."""

    def __init__(self, rows: torch.Tensor) -> None:
        self.rows = rows

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **options: Any) -> torch.Tensor:
        """Returns the same rows at every step."""
        return self.rows


def stops(model: Any) -> tuple[list[int], int]:
    """Returns the tokens that end a row, and the one that pads after them."""
    config = model.generation_config
    ends = config.eos_token_id
    ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    return ends, (ends or [0])[0] if config.pad_token_id is None else config.pad_token_id


def generate(
    model: Any,
    cache: CompressedCache,
    tokens: torch.Tensor,
    following: Mapping[str, torch.Tensor],
    max_new_tokens: int,
) -> torch.Tensor:
    """Generates the greedy tokens of `model.generate`; rows that have ended leave the batch and cost no more time.

    Args:
        model: the model that ran the prompts.
        cache: holds the prompts of S tokens; afterwards the rows that ended last.
        tokens: (B, S + 1) int64, the prompts and the first token of each answer.
        following: mask (B, S) and positions (..., B, S), from which those of later tokens follow.
        max_new_tokens: length of the answers, the first token included.

    Returns:
        (B, S + T) int64: the prompts and at most `max_new_tokens` tokens, padded after each row's end.
    """
    ends, pad = stops(model)
    prompt, inputs = tokens.shape[1] - 1, dict(following)
    rows = torch.arange(len(tokens), dtype=torch.int64, device=tokens.device)
    result = tokens.new_full((len(rows), prompt + max_new_tokens), pad)
    while True:
        length = tokens.shape[1]
        result[rows, :length] = tokens
        active = ~_ended(tokens[:, prompt:], ends)
        left = prompt + max_new_tokens - length
        if left == 0 or not bool(active.any()):
            return result[:, :length]
        if int(active.sum()) <= COMPACT_BELOW * len(rows):
            cache.batch_select_indices(active.nonzero().flatten().cpu())  # layers may lie on several devices
            rows, tokens = rows[active], tokens[active]
            inputs = {name: tensor[..., active, :] for name, tensor in inputs.items()}
            active = active[active]
        tokens = model.generate(
            input_ids=tokens,
            **_extended(inputs, length),
            **cache_argument(cache),
            do_sample=False,
            use_cache=True,
            max_new_tokens=min(left, ROUND_TOKENS),
            stopping_criteria=StoppingCriteriaList([Ended(~active)]),
        )
        tokens[~active, length:] = pad  # stopping criteria run after a token: these rows have one too many


def until_all_end(tokens: torch.Tensor, prompt: int, ends: list[int]) -> torch.Tensor:
    """Returns tokens (B, S + T) up to the column where the last answer ends; all of them if one does not end.

    Args:
        tokens: prompts of S = `prompt` tokens, and answers.
        prompt: S.
        ends: tokens that end an answer.
    """
    answers = tokens[:, prompt:]
    if not bool(_ended(answers, ends).all()):
        return tokens
    last = torch.isin(answers, answers.new_tensor(ends)).int().argmax(dim=1).max()
    return tokens[:, : prompt + int(last) + 1]


def _ended(tokens: torch.Tensor, ends: list[int]) -> torch.Tensor:
    """Returns which rows of tokens (B, T) have ended, (B,) bool."""
    return torch.isin(tokens, tokens.new_tensor(ends)).any(dim=1)


def _extended(inputs: Mapping[str, torch.Tensor], length: int) -> dict[str, torch.Tensor]:
    """Extends positions (..., B, T), by one per token, and a mask (B, T), with real tokens, to `length` columns."""
    result = {}
    for name, tensor in inputs.items():
        more = torch.arange(1, length - tensor.shape[-1] + 1, dtype=torch.int64, device=tensor.device)
        step = more if name == "position_ids" else torch.zeros_like(more)
        result[name] = torch.cat([tensor, tensor[..., -1:] + step], dim=-1)
    return result
