"""One forward over a prompt, from which any number of compressed caches can be made."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy, deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from sparsemm.cache.compressed import CompressedCache, build, compressed_cache
from sparsemm.cache.layer import RaggedLayer
from sparsemm.errors import CacheError
from sparsemm.policies.full import Full
from sparsemm.policies.policy import Policy

if TYPE_CHECKING:
    from sparsemm.scores import ScoreTable


TOKENS_OF_A_ROUND = 16  # between two looks at which rows have ended
MOST_LEFT = 0.75  # share of the rows at which the others leave: it copies the cache
COUNTED = ("forced_eos_token_id", "min_new_tokens", "exponential_decay_length_penalty")  # from where generate began


class Recorder(RaggedLayer):
    """One layer that keeps what the others are compressed from: `compress` notes its arguments.

    Args:
        index: of the full-attention layers.
        rows: newest query rows to keep; None for all.
    """

    def __init__(self, index: int, rows: int | None) -> None:
        super().__init__(index, Full())
        self.rows = rows
        self.noted: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, float] | None = None

    def compress(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float
    ) -> None:
        """Note the prompt's keys and values (B, Hkv, S, D) and its newest queries (B, Hq, rows, D).

        Raises:
            CacheError: if the newest token of a row is padding.
        """
        if mask is not None:
            self.real_tokens(mask, key.shape[2])
            mask = mask[:, :, -1:].clone()  # the last row sees every token that is no padding
        if self.rows is not None and self.rows < query.shape[2]:
            query = query[:, :, -self.rows :].clone()  # a view would keep every row alive
        self.noted = (query, key, value, mask, scaling)

    def replay(self, layer: RaggedLayer) -> None:
        """Give another layer this prompt, as its own forward would have."""
        assert self.noted is not None
        query, key, value, mask, scaling = self.noted
        layer.update(key, value)
        layer.compress(query, key, value, mask, scaling)


class Ended(StoppingCriteria):
    """Rows (B,) that were over before this generation began."""

    def __init__(self, rows: torch.Tensor) -> None:
        self.rows = rows

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **options: Any) -> torch.Tensor:
        """The same rows at every step."""
        return self.rows


@dataclass(frozen=True, eq=False)
class Prefill:
    """A prompt after its only forward. Layers are compressed after their attention, so no method changes this much.

    Attributes:
        model: whose it is.
        tokens: (B, S + 1) int64, the prompt and the greedy first token.
        logits: (B, vocabulary) fp32 of the prompt's last position, before any logits processor.
        rows: newest query rows every layer keeps; None for all.
    """

    model: Any
    tokens: torch.Tensor
    logits: torch.Tensor
    rows: int | None
    _cache: CompressedCache
    _inputs: dict[str, torch.Tensor]  # what goes on growing with the tokens

    @property
    def length(self) -> int:
        """S, tokens of the prompt, padding included."""
        return self.tokens.shape[1] - 1

    def compress(
        self,
        method: str | Policy,
        budget: int | None = None,
        scores: ScoreTable | np.ndarray | torch.Tensor | None = None,
        **options: Any,
    ) -> CompressedCache:
        """The cache a forward of its own would have left: the same positions, the same bits.

        Args:
            method, budget, scores, options: as `sparsemm.compressed_cache`.

        Raises:
            CacheError: if the method observes more rows than were kept, the prefill was for one cache, or
                `prompt_length` is not this prompt's.
            BudgetError, ScoreTableError: as `sparsemm.compressed_cache`.
        """
        if not isinstance(self._cache.ragged[0], Recorder):
            raise CacheError("this prefill was for one cache", hint="prefill without `cache`")
        if options.get("prompt_length") not in (None, self.length):
            raise CacheError(f"prompt_length {options['prompt_length']} of a prompt of {self.length} tokens")
        cache = compressed_cache(self.model, method, budget, scores, **options)
        policy = cache.ragged[0].policy
        wanted = self.length if policy.selector.every_row else policy.window
        if policy.compresses and self.rows is not None and self.rows < min(wanted, self.length):
            what = f"{type(policy).__name__} observes {wanted} rows, {self.rows} were kept"
            raise CacheError(what, hint="prefill with a larger window, or None for every row")
        for i, (mine, other) in enumerate(zip(self._cache.layers, cache.layers, strict=True)):
            if isinstance(mine, Recorder):
                mine.replay(other)
            else:
                cache.layers[i] = deepcopy(mine)  # linear layers write into their states
        cache.rope = copy(self._cache.rope)
        cache.forwards = list(self._cache.forwards)
        return cache

    def generate(self, cache: CompressedCache, max_new_tokens: int) -> torch.Tensor:
        """Greedy tokens of `model.generate`. Rows that have ended leave the batch, so that only the others cost time.

        Args:
            cache: made by `compress`, or the one the prefill was given; not used before. It holds the rows that are
                left when the last one ends.
            max_new_tokens: the first one, which is the same for every cache, included.

        Returns:
            (B, S + T) int64: the prompt and at most `max_new_tokens` tokens, padded behind each row's end.
        """
        ends, pad = self._stops()
        rows = torch.arange(len(self.tokens), dtype=torch.int64, device=self.tokens.device)
        result = self.tokens.new_full((len(rows), self.length + max_new_tokens), pad)
        tokens, inputs = self.tokens, self._inputs
        while True:
            length = tokens.shape[1]
            result[rows, :length] = tokens
            going = ~torch.isin(tokens[:, self.length :], tokens.new_tensor(ends)).any(dim=1)
            left = self.length + max_new_tokens - length
            if left == 0 or not bool(going.any()):
                return result[:, :length]
            if int(going.sum()) <= MOST_LEFT * len(rows):
                cache.batch_select_indices(going.nonzero().flatten().cpu())  # layers may lie on several devices
                rows, tokens = rows[going], tokens[going]
                inputs = {name: given[..., going, :] for name, given in inputs.items()}
                going = going[going]
            tokens = self.model.generate(
                input_ids=tokens,
                **_longer(inputs, length),
                past_key_values=cache,
                do_sample=False,
                use_cache=True,
                max_new_tokens=min(left, TOKENS_OF_A_ROUND),
                stopping_criteria=StoppingCriteriaList([Ended(~going)]),
            )
            tokens[~going, length:] = pad  # criteria are asked after a token: these rows have one too many

    def _stops(self) -> tuple[list[int], int]:
        """Tokens that end a row, and the one that pads behind them."""
        config = self.model.generation_config
        ends = config.eos_token_id
        ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
        return ends, (ends or [0])[0] if config.pad_token_id is None else config.pad_token_id


def _longer(inputs: Mapping[str, torch.Tensor], length: int) -> dict[str, torch.Tensor]:
    """Positions (..., B, T) that go on by one a token, and a mask (B, T) of real tokens: of `length` columns."""
    found = {}
    for name, given in inputs.items():
        more = torch.arange(1, length - given.shape[-1] + 1, dtype=torch.int64, device=given.device)
        step = more if name == "position_ids" else torch.zeros_like(more)
        found[name] = torch.cat([given, given[..., -1:] + step], dim=-1)
    return found


def prefill(
    model: Any, inputs: Mapping[str, torch.Tensor], window: int | None = None, cache: CompressedCache | None = None
) -> Prefill:
    """Run a prompt through a model once, with everything kept.

    Args:
        model: a generating model of transformers, multimodal or text only.
        inputs: what `model.generate` takes: input_ids (B, S), attention_mask, pixel tensors; padded on the left.
        window: the largest window of the methods to come; None keeps every row, which "h2o" needs.
        cache: where there is only one method: its cache, compressed as the layers come. Nothing else is kept.

    Raises:
        CacheError: if a prompt is padded on the right, the model has layers the cache cannot serve, or its generation
            config counts new tokens, which come in rounds here.
    """
    for name in COUNTED:
        if getattr(model.generation_config, name, None) is not None:
            what = f"{name} counts the tokens of one call of generate"
            raise CacheError(what, where="model.generation_config", hint=f"set {name} to None")
    cache = build(model, lambda index: Recorder(index, window)) if cache is None else cache
    positions: list[torch.Tensor | None] = []
    # Positions are not the tokens' numbers in every family (M-RoPE): later ones continue from what the model was given.
    hook = model.register_forward_pre_hook(
        lambda _, __, given: positions.append(given.get("position_ids")), with_kwargs=True
    )
    try:
        out = model.generate(
            **inputs,
            past_key_values=cache,
            do_sample=False,
            use_cache=True,
            max_new_tokens=1,
            return_dict_in_generate=True,
            output_logits=True,
        )
    finally:
        hook.remove()
    later = {"position_ids": positions[0], "attention_mask": inputs.get("attention_mask")}
    growing = {name: given for name, given in later.items() if given is not None}
    return Prefill(model, out.sequences, out.logits[0], window, cache, growing)
