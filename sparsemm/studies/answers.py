"""Questions in batches, and the ways a model can answer them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from PIL import Image
from transformers import DynamicCache

from sparsemm.cache import compressed_cache
from sparsemm.cache.prefill import prefill
from sparsemm.cache.served import shape_of
from sparsemm.datasets.records import Record
from sparsemm.evaluate.model import kept_slots, observed_rows
from sparsemm.evaluate.tasks.local import asked_about
from sparsemm.policies.policy import Policy
from sparsemm.processes import processes, share
from sparsemm.prompts import build_inputs


@dataclass(frozen=True)
class Question:
    """A page, what is asked about it, and the reference answer."""

    id: str
    image: Image.Image
    prompt: str
    answer: str


@dataclass(frozen=True)
class Batch:
    """Questions as tensors.

    Attributes:
        index: of each row's question.
        inputs: what `model.generate` takes; padded on the left.
        cut: columns of the prompt that are there when the cache is compressed, or None for all.
    """

    index: list[int]
    inputs: Any
    cut: int | None = None


class Reply(NamedTuple):
    """New tokens of each row, slots kept after prefill per row, summed over heads, and bytes of a slot's K and V."""

    tokens: list[list[int]]
    kept: list[int] | None = None
    row_bytes: int = 0


def replies(model: Any, ways: Mapping[str, Callable[[], Reply]]) -> dict[str, Reply]:
    """What is said in each way; a small model's ways are shared between processes."""
    said = share(tuple(ways.values()), processes(model))
    return {name: Reply(*one) for name, one in zip(ways, said, strict=True)}


@dataclass(frozen=True)
class Kept:
    """How a cache is compressed: a policy that has no shape yet, and options of `sparsemm.compressed_cache`."""

    policy: Policy
    options: Mapping[str, Any]


def questions(task: str, records: list[Record], read_prompt: str, seed: int) -> list[Question]:
    """One question per record, as the evaluate stage asks it.

    Raises:
        DataError: if a record has nothing to ask about.
    """
    found = []
    for record in records:
        prompt, answer, _ = asked_about(task, record, read_prompt, seed)
        found.append(Question(record.id, record.image, prompt, answer))
    return found


def batches(processor: Any, asked: list[Question], size: int) -> Iterator[Batch]:
    """Questions in batches of at most `size`, pages of one size together, so that little is padded."""
    order = sorted(range(len(asked)), key=lambda i: (asked[i].image.size, len(asked[i].prompt), i))
    for start in range(0, len(order), size):
        index = order[start : start + size]
        mine = [asked[i] for i in index]
        yield Batch(index, build_inputs(processor, [[q.image] for q in mine], [q.prompt for q in mine]))


def plain(model: Any, batch: Batch, max_new_tokens: int) -> Reply:
    """Greedy answers with transformers' own cache."""
    out = model.generate(
        **batch.inputs, past_key_values=DynamicCache(), do_sample=False, use_cache=True, max_new_tokens=max_new_tokens
    )
    return Reply(out[:, batch.inputs["input_ids"].shape[1] :].tolist())


def compressed(model: Any, batch: Batch, max_new_tokens: int, ways: Mapping[str, Kept]) -> dict[str, Reply]:
    """Greedy answers through compressed caches: from one prefill, or from one each where the cache is cut earlier."""
    shape = shape_of(model)
    policies = {name: way.policy.for_pages(shape, batch.index) for name, way in ways.items()}
    if batch.cut is None:
        start = prefill(model, batch.inputs, observed_rows(list(policies.values())))

    def generate(name: str) -> Reply:
        policy, options = policies[name], ways[name].options
        if batch.cut is None:
            cache, prompt = start.compress(policy, **options), start
        else:
            cache = compressed_cache(model, policy, prompt_length=batch.cut, **options)
            prompt = prefill(model, batch.inputs, cache=cache)
        kept, row_bytes = kept_slots(cache), cache.slot_bytes()
        return Reply(prompt.generate(cache, max_new_tokens)[:, prompt.length :].tolist(), kept, row_bytes)

    return replies(model, {name: partial(generate, name) for name in ways})
