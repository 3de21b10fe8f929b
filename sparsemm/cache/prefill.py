"""One forward over a prompt, from which any number of compressed caches can be made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sparsemm.cache.compressed import CompressedCache, build, compressed_cache
from sparsemm.cache.generation import generate, stops, until_all_end
from sparsemm.cache.joining import join
from sparsemm.cache.layer import RaggedLayer
from sparsemm.cache.served import image_token
from sparsemm.compat import cache_argument
from sparsemm.errors import CacheError
from sparsemm.policies.full import Full
from sparsemm.policies.policy import Policy

if TYPE_CHECKING:
    from sparsemm.scores import ScoreTable


RELATIVE = ("forced_eos_token_id", "min_new_tokens", "exponential_decay_length_penalty")  # they count new tokens


class Recorder(RaggedLayer):
    """A layer that records the arguments of `compress`, from which the layers of other caches are compressed.

    Args:
        index: number of the layer among the full-attention layers.
        rows: newest query rows to keep; None for all.
    """

    def __init__(self, index: int, rows: int | None) -> None:
        super().__init__(index, Full())
        self.rows = rows
        self.arguments: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, float] | None = None

    def compress(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float
    ) -> None:
        """Records the prompt's keys and values (B, Hkv, S, D) and its newest queries (B, Hq, rows, D).

        Raises:
            CacheError: if the newest token of a row is padding.
        """
        if mask is not None:
            self.real_tokens(mask, key.shape[2])
            mask = mask[:, :, -1:].clone()  # the last row attends to every token that is not padding
        if self.rows is not None and self.rows < query.shape[2]:
            query = query[:, :, -self.rows :].clone()  # a view would keep every row alive
        self.arguments = (query, key, value, mask, scaling)

    def replay(self, layer: RaggedLayer) -> None:
        """Compresses another layer with this prompt, as its own forward would have."""
        assert self.arguments is not None
        query, key, value, mask, scaling = self.arguments
        layer.update(key, value)
        layer.compress(query, key, value, mask, scaling)


@dataclass(frozen=True, eq=False)
class Prefill:
    """A prompt after its only forward, which is the same for all methods: layers are compressed after their attention.

    Attributes:
        model: the model that ran it.
        tokens: (B, S + 1) int64, the prompt and the first greedy token.
        logits: (B, vocabulary) fp32 of the prompt's last position, before any logits processor.
        rows: newest query rows that every layer keeps; None for all.
        image_mask: (B, S) bool, the image tokens; None for a model without images.
        following: mask (B, S) and positions (..., B, S), from which those of later tokens follow.
    """

    model: Any
    tokens: torch.Tensor
    logits: torch.Tensor
    rows: int | None
    image_mask: torch.Tensor | None
    following: dict[str, torch.Tensor]
    _cache: CompressedCache

    @property
    def length(self) -> int:
        """S, the tokens of the prompt, padding included."""
        return self.tokens.shape[1] - 1

    def compress(
        self,
        method: str | Policy,
        budget: int | None = None,
        scores: ScoreTable | np.ndarray | torch.Tensor | None = None,
        **options: Any,
    ) -> CompressedCache:
        """Returns the cache that a separate forward would have filled, bit for bit.

        Args:
            method, budget, scores, options: as in `sparsemm.compressed_cache`.

        Raises:
            CacheError: if the method observes more rows than were kept, the prefill was for one cache, or
                `prompt_length` is not the length of this prompt.
            BudgetError, ScoreTableError: as in `sparsemm.compressed_cache`.
        """
        if not isinstance(self._cache.ragged[0], Recorder):
            raise CacheError("this prefill was for one cache", hint="call prefill without `cache`")
        if options.get("prompt_length") not in (None, self.length):
            raise CacheError(f"prompt_length is {options['prompt_length']}, but the prompt has {self.length} tokens")
        options.setdefault("image_mask", self.image_mask)
        cache = compressed_cache(self.model, method, budget, scores, **options)
        policy = cache.ragged[0].policy
        rows = self.length if policy.every_row else policy.window
        if policy.compresses and self.rows is not None and self.rows < min(rows, self.length):
            what = f"{type(policy).__name__} observes {rows} rows, but the prefill kept {self.rows}"
            raise CacheError(what, hint="call prefill with a larger window, or with None to keep every row")
        for i, (source, target) in enumerate(zip(self._cache.layers, cache.layers, strict=True)):
            if isinstance(source, Recorder):
                source.replay(target)
            else:
                cache.layers[i] = deepcopy(source)  # linear-attention layers write into their states
        cache.rope = copy(self._cache.rope)
        cache.forwards = list(self._cache.forwards)
        return cache

    def generate(self, cache: CompressedCache, max_new_tokens: int) -> torch.Tensor:
        """Generates the greedy tokens of `model.generate`; rows that have ended leave the batch and cost no more time.

        Args:
            cache: an unused cache from `compress`, or the one that `prefill` took. Afterwards it holds the rows that
                ended last.
            max_new_tokens: length of the answer, the first token included, which is the same for every cache.

        Returns:
            (B, S + T) int64: the prompt and at most `max_new_tokens` tokens, padded after each row's end.
        """
        return generate(self.model, cache, self.tokens, self.following, max_new_tokens)


def prefill(
    model: Any, inputs: Mapping[str, torch.Tensor], window: int | None = None, cache: CompressedCache | None = None
) -> Prefill:
    """Runs a prompt through a model once and keeps everything.

    Args:
        model: a generating model of transformers, multimodal or text only.
        inputs: the inputs of `model.generate`: input_ids (B, S), attention_mask, pixel tensors; padded on the left.
        window: the largest window of the methods to compare; None keeps every query row, which "h2o" needs.
        cache: the cache of the only method, if there is just one; it is filled directly, and nothing else is kept.

    Raises:
        CacheError: if a prompt is padded on the right, the model has layers that the cache does not support, or its
            generation config has an option that counts new tokens: `Prefill.generate` generates in rounds.
    """
    for name in RELATIVE:
        if getattr(model.generation_config, name, None) is not None:
            what = f"{name} counts the tokens of one call of generate, but tokens are generated in several calls here"
            raise CacheError(what, where="model.generation_config", hint=f"set {name} to None")
    cache = build(model, lambda index: Recorder(index, window)) if cache is None else cache
    token = image_token(model.config)
    image_mask = None if token is None else inputs["input_ids"] == token
    for layer in cache.ragged:
        layer.image = image_mask
    positions: list[torch.Tensor | None] = []
    steps, cut = [dict(inputs)], cache.ragged[0].prompt_length
    if cache.ragged[0].policy.measures and cut is not None and cut < inputs["input_ids"].shape[1]:
        # Its layers are split after the last one, so tokens behind the prompt need a forward of their own.
        shape = inputs["input_ids"].shape
        head = {name: one[:, :cut] if one.shape == shape else one for name, one in inputs.items()}
        steps = [head, {name: inputs[name] for name in ("input_ids", "attention_mask") if name in inputs}]
    # Not in every family are positions token numbers (M-RoPE): later positions continue from those of the prompt.
    hook = model.register_forward_pre_hook(
        lambda _, __, kwargs: positions.append(kwargs.get("position_ids")), with_kwargs=True
    )
    try:
        for step in steps:
            out = model.generate(
                **step,
                **cache_argument(cache),
                do_sample=False,
                use_cache=True,
                max_new_tokens=1,
                return_dict_in_generate=True,
                output_logits=True,
            )
    finally:
        hook.remove()
    tensors = {"attention_mask": inputs["attention_mask"]} if "attention_mask" in inputs else {}
    if known := [one for one in positions if one is not None]:
        shape = known[0].shape[:-1]  # text behind an image may have one axis for the three of M-RoPE
        tensors["position_ids"] = torch.cat([one.expand(*shape, one.shape[-1]) for one in known], dim=-1)
    return Prefill(model, out.sequences, out.logits[0], window, image_mask, tensors, cache)


def generate_together(
    prompts: Sequence[Prefill], caches: Sequence[CompressedCache], max_new_tokens: int
) -> list[torch.Tensor]:
    """Generates the tokens of `Prefill.generate` for several caches in one batch.

    A step with few rows takes the time to read the model's weights, however few there are; the caches share it.

    Args:
        prompts: prefills of the same prompts, one for each cache; for caches from `Prefill.compress` the same one.
        caches: unused caches that `join` can join; it empties all but the first.
        max_new_tokens: length of the answers, the first token included.

    Returns:
        For each cache (B, S + T) int64, as from `Prefill.generate`.

    Raises:
        CacheError: if the caches do not go together.
    """
    first = prompts[0]
    tokens = torch.cat([one.tokens for one in prompts])
    following = {name: torch.cat([one.following[name] for one in prompts], dim=-2) for name in first.following}
    result = generate(first.model, join(caches), tokens, following, max_new_tokens)
    ends, _ = stops(first.model)
    return [until_all_end(one, first.length, ends) for one in result.chunk(len(prompts))]
