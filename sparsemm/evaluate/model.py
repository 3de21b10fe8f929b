"""Answers of one model to one batch, under any number of methods and budgets, from one prefill."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from PIL import Image

from sparsemm.cache.compressed import CompressedCache, compressed_cache
from sparsemm.cache.prefill import prefill
from sparsemm.cache.served import policy_of
from sparsemm.policies import Policy, policy_class
from sparsemm.policies.per_row import drawn_anew
from sparsemm.processes import processes, share
from sparsemm.prompts import build_inputs


@dataclass(frozen=True, eq=False)
class Variant:
    """One way to keep less of a prompt.

    Attributes:
        method: a name of `sparsemm.policies.METHODS`, or a ready policy, which knows its budget, scores and window.
        budget: mean slots per KV head, window included; None for "full" and for a ready policy.
        scores: a ScoreTable, or a matrix (L, Hq) or (L, Hkv).
        window, rho, mode, pooling_kernel, seed: as `sparsemm.compressed_cache`.
    """

    method: str | Policy = "full"
    budget: int | None = None
    scores: Any = field(default=None, repr=False)
    window: int = 32
    rho: float = 0.1
    mode: str = "exact"
    pooling_kernel: int = 5
    seed: int = 0

    def ready(self, model: Any) -> Variant:
        """The same with its policy made, which then serves every batch.

        Raises:
            BudgetError, ScoreTableError, CacheError: as `sparsemm.compressed_cache`.
        """
        return replace(self, method=self._policy(model, self.seed))

    def ready_for(self, model: Any, pages: Sequence[int]) -> Variant:
        """The same for one batch, rows of the pages of these numbers: random heads are drawn anew for every page.

        Raises:
            BudgetError, ScoreTableError, CacheError: as `sparsemm.compressed_cache`.
        """
        if isinstance(self.method, Policy) or not policy_class(self.method).drawn:
            return self.ready(model)
        return replace(self, method=drawn_anew(lambda seed: self._policy(model, seed), self.seed, pages))

    def _policy(self, model: Any, seed: int) -> Policy:
        options = {"window": self.window, "rho": self.rho, "mode": self.mode, "seed": seed}
        return policy_of(model, self.method, self.budget, self.scores, **options)

    @property
    def policy(self) -> Policy:
        """The policy of a variant that is `ready`."""
        assert isinstance(self.method, Policy)
        return self.method


@dataclass(frozen=True)
class Answers:
    """What one variant said to a batch.

    Attributes:
        texts: one answer per row, without special tokens.
        kept: slots each row kept after prefill, summed over layers and KV heads.
    """

    texts: list[str]
    kept: list[int]


def kept_slots(cache: CompressedCache) -> list[int]:
    """Slots each row kept when its prompt was compressed, summed over layers and KV heads."""
    return torch.stack([slots.sum(dim=-1) for slots in cache.budgets()]).sum(dim=0).tolist()


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
    variants: Sequence[Variant],
    max_new_tokens: int,
) -> Iterator[Answers]:
    """Greedy answers of every variant to one batch, in the order of the variants.

    With more than one variant the prompts are run once with everything kept, and each variant compresses from there.
    With one variant layers are compressed as they come, which needs less memory. Answers are the same.

    Args:
        images: RGB images of each row.
        prompts: what the user says in each row.
        max_new_tokens: at most so many per answer.

    Raises:
        DataError: if there is no row, or not one list of images per prompt.
        BudgetError, ScoreTableError, CacheError: as `sparsemm.compressed_cache`.
    """
    variants = [variant.ready(model) for variant in variants]
    inputs = build_inputs(processor, images, prompts).to(model.device)
    inputs = {k: v.to(model.dtype) if v.is_floating_point() else v for k, v in inputs.items()}
    if len(variants) > 1:
        observing = [variant.policy for variant in variants if variant.policy.compresses]
        every = any(policy.every_row for policy in observing)
        start = prefill(model, inputs, None if every else max([policy.window for policy in observing], default=1))

    def said(variant: Variant) -> tuple[list[list[int]], list[int]]:
        if len(variants) > 1:
            cache, mine = start.compress(variant.policy, pooling_kernel=variant.pooling_kernel), start
        else:
            cache = compressed_cache(model, variant.policy, pooling_kernel=variant.pooling_kernel)
            mine = prefill(model, inputs, cache=cache)
        kept = kept_slots(cache)
        return mine.generate(cache, max_new_tokens)[:, mine.length :].tolist(), kept

    for tokens, kept in share([partial(said, variant) for variant in variants], processes(model)):
        yield Answers(processor.tokenizer.batch_decode(tokens, skip_special_tokens=True), kept)
