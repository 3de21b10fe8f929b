"""Generates greedy answers to a batch of questions with several variants of the cache, from one prefill."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from sparsemm.cache.compressed import CompressedCache, compressed_cache
from sparsemm.cache.prefill import generate_together, prefill
from sparsemm.cache.replay import replay_attention
from sparsemm.cache.served import shape_of
from sparsemm.errors import PromptTooLong
from sparsemm.evaluate.questions import Question
from sparsemm.policies.policy import Policy
from sparsemm.processes import processes, share
from sparsemm.prompts import build_inputs, move_inputs

ROWS = 32  # rows that decode together at most; with more, a CPU's step takes time in proportion to them


@dataclass(frozen=True)
class Variant:
    """A variant of the cache: a configured method, and how the cache stores what it keeps.

    Attributes:
        policy: the method with its options and budget; it need not know the model yet.
        storage, hold_budget: as in `sparsemm.compressed_cache`.
    """

    policy: Policy
    storage: str = "model"
    hold_budget: bool = False


@dataclass(frozen=True)
class Batch:
    """A batch of questions as tensors.

    Attributes:
        index: number of each row's question.
        inputs: output of the processor, padded on the left.
        cut: number of columns after which the cache is compressed, or None for the whole prompt.
        replay: takes the model, and returns `replay` of `sparsemm.compressed_cache` for these prompts; called only for
            selectors that need it. None if there is none.
        most_rows: how many rows of several variants may decode together; 0 means one variant at a time.
    """

    index: list[int]
    inputs: Any
    cut: int | None = None
    replay: Callable[[Any], Sequence[torch.Tensor]] | None = None
    most_rows: int = 0


@dataclass(frozen=True)
class Reading:
    """How a model reads a page for selectors that need a replay.

    Attributes:
        prompt: what it is asked, whatever the question about the page is.
        max_new_tokens: most tokens of its answer.
    """

    prompt: str
    max_new_tokens: int

    def replay(self, processor: Any, images: list[list[Image.Image]], inputs: Any, model: Any) -> list[torch.Tensor]:
        """Returns `replay_attention` of prompts `inputs` about these images."""
        reading = build_inputs(processor, images, [self.prompt] * len(images))
        return replay_attention(model, reading, self.max_new_tokens, inputs)


class Reply(NamedTuple):
    """The answers to a batch with one variant.

    Attributes:
        tokens: new tokens of each row.
        kept: slots of each row after prefill, summed over layers and KV heads; None if no cache was compressed.
        slot_bytes: bytes of the key and value in one slot.
        refused: why the method cannot serve these prompts, which then have no answers; empty if it can.
    """

    tokens: list[list[int]]
    kept: list[int] | None = None
    slot_bytes: int = 0
    refused: str = ""


def make_batch(
    processor: Any, questions: Sequence[Question], index: Sequence[int], reading: Reading | None = None
) -> Batch:
    """Returns the questions with these numbers as one batch; without a `reading`, selectors cannot have a replay.

    Raises:
        DataError: if the processor refuses an image or a prompt.
    """
    chosen = [questions[at] for at in index]
    images = [q.images() for q in chosen]
    inputs = build_inputs(processor, images, [q.prompt for q in chosen])
    replay = None if reading is None else partial(reading.replay, processor, images, inputs)
    return Batch(list(index), inputs, replay=replay)


@torch.inference_mode()
def answer(model: Any, batch: Batch, variants: Mapping[str, Variant], max_new_tokens: int) -> dict[str, Reply]:
    """Returns greedy answers to one batch for every variant.

    Several variants of a whole prompt share one prefill that keeps everything, and each compresses from there. A single
    variant is compressed layer by layer, which needs less memory. Variants with equal storage decode together, as long
    as they have at most `batch.most_rows` and `ROWS` rows. The answers are the same. A method for whose budget a prompt
    is too long gives a refused `Reply`; the others answer.

    Raises:
        BudgetError, ScoreTableError, CacheError: as in `sparsemm.compressed_cache`.
    """
    shape, inputs = shape_of(model), move_inputs(batch.inputs, model)
    policies: dict[str, Policy] = {}
    refused: dict[str, Reply] = {}
    for name, one in variants.items():
        try:
            policies[name] = one.policy.for_pages(shape, batch.index)
        except PromptTooLong as error:  # for a prompt of any length above the budget
            refused[name] = Reply([], refused=str(error))
    replayed = any("replay" in policy.reads for policy in policies.values())
    replay = batch.replay(model) if replayed and batch.replay is not None else None
    shared = None
    if batch.cut is None and len(policies) > 1:
        shared = prefill(model, inputs, _observed_rows(list(policies.values())))

    def generate_group(names: Sequence[str]) -> list[Reply]:
        own: dict[str, Reply] = {}
        prompts, caches = [], []
        for name in names:
            one = variants[name]
            options: dict[str, Any] = {"storage": one.storage, "hold_budget": one.hold_budget, "replay": replay}
            try:
                if shared is None:
                    cache = compressed_cache(model, policies[name], prompt_length=batch.cut, **options)
                    prompt = prefill(model, inputs, cache=cache)
                else:
                    cache, prompt = shared.compress(policies[name], **options), shared
            except PromptTooLong as error:
                own[name] = Reply([], refused=str(error))
                continue
            own[name] = Reply([], _kept_slots(cache), cache.slot_bytes())
            prompts.append(prompt)
            caches.append(cache)
        tokens = iter(generate_together(prompts, caches, max_new_tokens) if caches else ())
        length = inputs["input_ids"].shape[1]
        return [one if one.refused else one._replace(tokens=next(tokens)[:, length:].tolist()) for one in own.values()]

    kinds = {name: (variants[name].storage, variants[name].hold_budget, one) for name, one in policies.items()}
    most = max(1, min(batch.most_rows, ROWS) // len(batch.index))
    groups = _groups(kinds, most if len(shape.layers) == shape.num_hidden_layers else 1)
    results = share([partial(generate_group, names) for names in groups], processes(model))
    replies: dict[str, Reply] = {}
    for names, group in zip(groups, results, strict=True):
        replies |= {name: Reply(*reply) for name, reply in zip(names, group, strict=True)}
    return refused | {name: replies[name] for name in policies}


def _groups(kinds: Mapping[str, tuple[str, bool, Policy]], most: int) -> list[list[str]]:
    """Returns names in groups whose caches can decode together: at most `most`, and about equally many in each.

    Args:
        kinds: name -> `storage` and `hold_budget` of a variant, and its policy.
        most: variants in a group.
    """
    alike: dict[Any, list[str]] = {}
    for name, (storage, held, policy) in kinds.items():
        alike.setdefault((storage, (policy.selector, policy.window) if held else None), []).append(name)
    parts = (np.array_split(names, -(-len(names) // most)) for names in alike.values())
    return [part.tolist() for each in parts for part in each]


def _kept_slots(cache: CompressedCache) -> list[int]:
    return torch.stack([slots.sum(dim=-1) for slots in cache.budgets()]).sum(dim=0).tolist()


def _observed_rows(policies: Sequence[Policy]) -> int | None:
    """Returns how many query rows a shared prefill has to keep for these policies; None for all."""
    observing = [policy for policy in policies if policy.compresses]
    if any(policy.every_row for policy in observing):
        return None
    return max([policy.window for policy in observing], default=1)
