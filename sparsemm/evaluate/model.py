"""Answers of one model to one batch, under any number of methods and budgets, from one prefill."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image

from sparsemm.cache.compressed import CompressedCache, compressed_cache
from sparsemm.cache.prefill import prefill
from sparsemm.cache.served import shape_of
from sparsemm.policies.policy import Policy
from sparsemm.processes import processes, share
from sparsemm.prompts import build_inputs


@dataclass(frozen=True)
class Answers:
    """What a batch was answered under one policy.

    Attributes:
        texts: one answer per row, without special tokens.
        kept: slots each row kept after prefill, summed over layers and KV heads.
    """

    texts: list[str]
    kept: list[int]


def kept_slots(cache: CompressedCache) -> list[int]:
    """Slots each row kept when its prompt was compressed, summed over layers and KV heads."""
    return torch.stack([slots.sum(dim=-1) for slots in cache.budgets()]).sum(dim=0).tolist()


def observed_rows(policies: Sequence[Policy]) -> int | None:
    """Query rows that a shared prefill has to keep, so that each of the policies can observe; None for all."""
    observing = [policy for policy in policies if policy.compresses]
    if any(policy.selector.every_row for policy in observing):
        return None
    return max([policy.window for policy in observing], default=1)


def slot_bytes(model: Any) -> int:
    """Bytes of K and V of one token in one KV head."""
    config = model.config.get_text_config()
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * head_dim * model.dtype.itemsize


@torch.inference_mode()
def answer(
    model: Any,
    processor: Any,
    images: list[list[Image.Image]],
    prompts: list[str],
    policies: Sequence[Policy],
    max_new_tokens: int,
) -> Iterator[Answers]:
    """Greedy answers to one batch under every policy, in the order of the policies.

    With more than one policy the prompts are run once with everything kept, and each compresses from there. With one,
    layers are compressed as they come, which needs less memory. Answers are the same.

    Args:
        images: RGB images of each row.
        prompts: what the user says in each row.
        max_new_tokens: at most so many per answer.

    Raises:
        DataError: if there is no row, or not one list of images per prompt.
        BudgetError, ScoreTableError, CacheError: as `sparsemm.compressed_cache`.
    """
    shape = shape_of(model)
    policies = [policy.for_model(shape) for policy in policies]
    inputs = build_inputs(processor, images, prompts).to(model.device)
    inputs = {k: v.to(model.dtype) if v.is_floating_point() else v for k, v in inputs.items()}
    if len(policies) > 1:
        start = prefill(model, inputs, observed_rows(policies))

    def generate(policy: Policy) -> tuple[list[list[int]], list[int]]:
        cache = start.compress(policy) if len(policies) > 1 else compressed_cache(model, policy)
        prompt = start if len(policies) > 1 else prefill(model, inputs, cache=cache)
        kept = kept_slots(cache)
        return prompt.generate(cache, max_new_tokens)[:, prompt.length :].tolist(), kept

    for tokens, kept in share([partial(generate, policy) for policy in policies], processes(model)):
        yield Answers(processor.tokenizer.batch_decode(tokens, skip_special_tokens=True), kept)
