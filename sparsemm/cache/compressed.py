"""A transformers cache that keeps a different number of tokens in every head."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Sequence
from copy import deepcopy
from numbers import Integral
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from sparsemm.attention_probe import Switch
from sparsemm.cache.attention import ragged_attention
from sparsemm.cache.layer import RaggedLayer
from sparsemm.cache.projection import projections
from sparsemm.cache.quantized import STORAGES
from sparsemm.cache.rope import RopeDeltas
from sparsemm.cache.served import check_attention, image_token, layers_of, shape_of, tuned_prefix
from sparsemm.cache.slab import Slab
from sparsemm.cache.summary import Summary, other_bytes, summarize
from sparsemm.errors import BudgetError, CacheError
from sparsemm.policies import make_policy
from sparsemm.policies.policy import Policy
from sparsemm.recipes import automatic

if TYPE_CHECKING:
    from sparsemm.scores import ScoreTable


class CompressedCache(Cache):
    """A cache for `model.generate(**cache_argument(cache))`, compressed layer by layer during prefill."""

    layers: list[Any]  # RaggedLayer for full attention, transformers' own layers for other kinds

    def __init__(self, layers: list[Any], config: Any, rope: RopeDeltas | None = None) -> None:
        super().__init__(layers=layers)
        self._warned = False  # a cache logs at most one warning
        self._candidates = False  # whether assisted decoding feeds candidate tokens
        self.config = weakref.ref(config)  # a copy of the cache serves the same model
        self.switch = Switch(config, ragged_attention)
        self.rope = rope
        self.forwards = [0] * len(layers)  # forwards started in each linear-attention layer
        self.linear = [i for i, layer in enumerate(layers) if not isinstance(layer, CacheLayerMixin)]
        attention_layers = [i for i in range(len(layers)) if i not in self.linear]
        self.first, self.last = attention_layers[0], attention_layers[-1]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kw: Any
    ) -> Any:
        """Adds keys and values (B, Hkv, T, D) of one layer, as in transformers.

        Raises:
            CacheError: if the model has more layers than the cache, or an earlier forward did not reach the last one.
        """
        if layer_idx >= len(self.layers):
            what = f"the model has more layers than this cache, which has {len(self.layers)}"
            raise CacheError(what, hint="make the cache for this model")
        if layer_idx == self.first:
            self._warn_once(key_states.shape[2])
            if layer_idx == 0:
                self._check_complete()
            if self.rope is not None:
                self.rope.take(key_states.shape[2])
        layer = self.layers[layer_idx]
        if not isinstance(layer, RaggedLayer):
            return super().update(key_states, value_states, layer_idx, *args, **kw)
        pending = layer.update(key_states, value_states, self.switch)
        self.switch.begin()
        return pending

    def _warn_once(self, new: int) -> None:
        """Warns once if a method that compresses has kept all of more tokens than its budget.

        This runs before each forward of `new` tokens and reads nothing from the device. The first forward after the
        prompt checks the prompt; a later turn checks the conversation, if the prompt was short and nothing is
        compressed again.
        """
        first = self.ragged[0]
        later = first.seen - first.barrier
        if self._warned or first.slab is None or not first.policy.compresses or (later > 0 and new == 1):
            return
        budget, log = first.policy.budget, logging.getLogger(__name__)
        evicted = [sum(rows) for rows in zip(*(layer.evicted for layer in self.ragged), strict=False)]
        uncompressed = [n for n, lost in zip(first.tokens, evicted, strict=False) if lost == 0 and n > budget]
        if uncompressed:
            self._warned = True
            what = "sparsemm: %s kept all of %d of %d prompts (up to %d tokens), though its budget is %d"
            log.warning(what, type(first.policy).__name__, len(uncompressed), len(evicted), max(uncompressed), budget)
        elif not first.recompress and not self._candidates and new > 1 and not any(evicted):
            longest = max(first.tokens) + later + new
            if longest > budget:
                self._warned = True
                what = (
                    "sparsemm: nothing is compressed: the prompt had %d tokens, no more than the budget %d, and %d "
                    "later ones are kept; recompress=True compresses again, prompt_length=n waits for all chunks"
                )
                log.warning(what, max(first.tokens), budget, later + new)

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> torch.Tensor | None:
        """Returns the state as in transformers; every forward of a linear-attention layer begins with this call.

        Raises:
            CacheError: if an earlier forward did not reach the last layer.
        """
        if state_idx == 0:
            if layer_idx == 0:
                self._check_complete()
            self.forwards[layer_idx] += 1
        return super().get_conv_state(layer_idx, state_idx)

    def _check_complete(self) -> None:
        """Raises CacheError unless all layers have seen the same tokens."""
        seen = [self.layers[i].get_seq_length() for i in (self.first, self.last)]
        started = {self.forwards[i] for i in self.linear}
        if seen[0] != seen[-1] or len(started) > 1:
            what = f"the first layer has seen {seen[0]} tokens and the last {seen[-1]}: a forward broke off"
            if seen[0] == seen[-1]:
                what = "some linear-attention layers have seen tokens that others have not: a forward broke off"
            raise CacheError(what, hint="make a new cache, for this model, or call reset()")

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Returns the number of tokens seen, evicted ones and padding included."""
        if self.rope is not None:
            self.rope.put_back()
        return int(super().get_seq_length(layer_idx))

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Returns the number of tokens seen, as masks need it; unlike `get_seq_length` it leaves M-RoPE alone."""
        return int(super().get_seq_length(layer_idx))

    @property
    def max_cache_len(self) -> int:
        """Raises CacheError: only PEFT's prefix tuning reads this, and it is not supported."""
        raise tuned_prefix("past_key_values")

    def reset(self) -> None:
        """Empties the cache; the next prompt is compressed anew."""
        super().reset()
        self.forwards = [0] * len(self.layers)
        if self.rope is not None:
            self.rope.reset()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Raises CacheError: a cache belongs to its model, and SparseMM reads no pickles."""
        raise CacheError("a cache cannot be pickled", hint="copy it with copy.deepcopy, or store its tokens")

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Returns another cache with the same contents, for the same model."""
        other = type(self).__new__(type(self))
        memo[id(self)] = other
        vars(other).update(deepcopy(vars(self), memo))
        return other

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps the batch rows `indices`, (N,) int64 or a mask (B,) bool, in that order.

        Raises:
            CacheError: if there is no such row, or none would be left.
        """
        batch = self.ragged[0].batch()
        for layer in (*self.ragged, *self._others()):  # ragged layers first: they check the indices
            if isinstance(layer, CacheLayerMixin):
                layer.batch_select_indices(indices)  # type: ignore[attr-defined]
            else:
                layer.reorder_cache(indices.nonzero().flatten() if indices.dtype == torch.bool else indices)
        if self.rope is not None:
            self.rope.select_rows(indices, batch)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Keeps the batch rows `beam_idx` (N,) int64, in that order; raises as `batch_select_indices`."""
        batch = self.ragged[0].batch()
        super().reorder_cache(beam_idx)  # type: ignore[arg-type]
        if self.rope is not None:
            self.rope.select_rows(beam_idx, batch)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats every batch row."""
        self.batch_select_indices(
            torch.arange(self.ragged[0].batch(), dtype=torch.int64, device="cpu").repeat_interleave(repeats)
        )

    @property
    def ragged(self) -> list[RaggedLayer]:
        """The compressed layers, which are those with full attention."""
        return [layer for layer in self.layers if isinstance(layer, RaggedLayer)]

    def _others(self) -> list[Any]:
        return [layer for layer in self.layers if not isinstance(layer, RaggedLayer)]

    def _slabs(self) -> list[Slab]:
        slabs = [layer.slab for layer in self.ragged if layer.slab is not None]
        if len(slabs) != len(self.ragged):
            first = self.ragged[0]
            hint = "run a whole prompt through the model first"
            if first.chunks is not None:
                hint = f"prompt_length is {first.prompt_length}, but only {first.seen} tokens have arrived"
            raise CacheError("the cache is empty", hint=hint)
        return slabs

    def budgets(self) -> list[torch.Tensor]:
        """Returns the slots kept at the last compression: (B, Hkv) int64 for each full-attention layer.

        Raises:
            CacheError: before the first prompt.
        """
        self._slabs()
        return [layer.slots for layer in self.ragged if layer.slots is not None]

    def kept_slots(self) -> torch.Tensor:
        """Returns the rows stored now, over all layers and KV heads: (B,) int64 on the CPU.

        Later tokens and sliding-window layers count; the states of linear-attention layers have no rows.

        Raises:
            CacheError: before the first prompt.
        """
        # Layers may lie on different devices.
        kept = torch.stack([slab.lengths.view(slab.batch, -1).sum(-1).cpu() for slab in self._slabs()]).sum(0)
        sliding: list[Any] = [layer for layer in self._others() if isinstance(layer, CacheLayerMixin)]
        return kept + sum(layer.keys.shape[1] * layer.keys.shape[2] for layer in sliding)

    def slot_bytes(self) -> int:
        """Returns the bytes of one row of a full-attention layer: key and value, and their scales in 8 bits.

        Raises:
            CacheError: before the first prompt.
        """
        return self._slabs()[0].row_bytes()

    def kept_bytes(self) -> int:
        """Returns the bytes of the keys and values stored now, their scales in 8 bits, and linear-attention states."""
        kept = sum(int(slab.lengths.sum()) * slab.row_bytes() for slab in self._slabs())
        return kept + sum(map(other_bytes, self._others()))

    def slab_bytes(self) -> int:
        """Returns the bytes allocated: `kept_bytes`, the slack, and the ratings of the rows with `hold_budget`."""
        allocated = sum(slab.allocated_bytes() for slab in self._slabs())
        allocated += sum(layer.eviction.allocated_bytes() for layer in self.ragged if layer.eviction is not None)
        return allocated + sum(map(other_bytes, self._others()))

    def summary(self) -> Summary:
        """Returns kept and seen rows and real bytes of each layer; printed, it is a line per layer.

        Raises:
            CacheError: before the first prompt.
        """
        self._slabs()
        return summarize(self.layers)

    def slack_share(self) -> float:
        """Returns the share of `slab_bytes` that holds no token."""
        return 1.0 - self.kept_bytes() / self.slab_bytes()

    def advance(self, count: int) -> None:
        """Counts `count` tokens on the host: a replayed graph counts them on the device only, a capture the reverse.

        Raises:
            CacheError: if the room of `max_new_tokens` is used up.
        """
        for layer in self.ragged:
            layer.advance(count)

    def crop(self, tokens_to_remove: int) -> None:
        """Removes the newest tokens, -`tokens_to_remove` of them.

        Raises:
            CacheError: if a layer cannot remove them; then nothing is changed.
        """
        for index, layer in enumerate(self.layers):
            recording = getattr(layer, "record_past", False)
            where, hint = f"layer {index}", "copy the cache with copy.deepcopy before you add tokens"
            if isinstance(layer, RaggedLayer) or tokens_to_remove == 0 or recording and layer.is_croppable:
                continue
            if not isinstance(layer, CacheLayerMixin):
                what = "cannot remove tokens: the state of a linear-attention layer is of all tokens together"
                raise CacheError(what, where=where, hint=hint)
            if getattr(layer, "is_sliding", False) and layer.get_seq_length() >= layer.sliding_window:  # type: ignore[attr-defined]
                what = "cannot remove tokens: those before its sliding window are gone"
                raise CacheError(what, where=where, hint=hint)
        for layer in (*self.ragged, *self._others()):
            if tokens_to_remove or getattr(layer, "record_past", False):
                layer.crop(tokens_to_remove)

    def activate_past_recording(self) -> None:
        """Prepares for assisted decoding, which crops candidate tokens.

        Raises:
            CacheError: if cropping could reach compressed or evicted tokens.
        """
        first = self.ragged[0]
        if first.hold_budget or (first.recompress and first.slab is None):
            hint = "use neither hold_budget nor recompress with assisted decoding"
            raise CacheError("candidate tokens could not be removed again", hint=hint)
        if first.slab is None and first.policy.compresses and first.prompt_length is None:
            hint = "pass prompt_length=inputs['input_ids'].shape[1] to compressed_cache"
            raise CacheError("assisted decoding appends candidate tokens to the prompt", hint=hint)
        if first.policy.measures:
            what = f"{type(first.policy).__name__} splits the budget after the last layer"
            raise CacheError(what, hint="use another method with assisted decoding")
        self._candidates = True
        super().activate_past_recording()


def build(model: Any, make: Callable[[int], RaggedLayer]) -> CompressedCache:
    """Returns a cache whose full-attention layers are `make(index)`; the model stays as it is.

    Raises:
        CacheError: if the model has layers or an attention that this cache does not support.
    """
    config = model.config.get_text_config()
    if not getattr(model, "_supports_default_dynamic_cache", lambda: True)():
        hint = "use a model that works with transformers' DynamicCache"
        raise CacheError("the model needs a cache class of its own", where=type(model).__name__, hint=hint)
    layers, full = layers_of(config, type(model).__name__)
    check_attention(model, config)
    for i, layer in enumerate(full):
        layers[layer] = make(i)
    return CompressedCache(layers, config, RopeDeltas(model))


def compressed_cache(
    model: Any,
    method: str | Policy,
    budget: int | None = None,
    scores: ScoreTable | np.ndarray | torch.Tensor | None = None,
    *,
    recompress: bool = False,
    hold_budget: bool = False,
    prompt_length: int | None = None,
    max_new_tokens: int | None = None,
    storage: str = "model",
    image_mask: torch.Tensor | None = None,
    replay: Sequence[torch.Tensor | None] | None = None,
    scenario: str = "known",
    **options: Any,
) -> CompressedCache:
    """Returns a fresh cache for one `model.generate(**inputs, **cache_argument(cache))` and its later turns.

    The prompt is compressed once, layer by layer, right after its prefill. All later tokens are kept unless
    `recompress` or `hold_budget` says otherwise. The model stays as it is: its own attention serves the prompt, and
    every call without this cache. Layers with sliding-window or linear attention keep transformers' own cache.

    Args:
        model: a generating model of transformers, multimodal or text only.
        method: a configured method such as `SparseMM(scores, budget=256, rho=0.1)`, or a name from
            `sparsemm.policies.METHODS`, which takes budget, scores and options from the arguments here. A plus adds one
            of `sparsemm.policies.SELECTORS` to the name: "sparsemm+peak". The name "auto" is the method of the recipe
            that `scores` bring along, logged by its name; without a recipe it is "sparsemm", with a warning.
        budget: mean slots per KV head, window included; ignored by "full".
        scores: head scores for the methods that need them, such as "sparsemm": a ScoreTable, or (L, Hq) or (L, Hkv).
        recompress: whether a later turn (a forward of more than one token) is compressed to the budget again, together
            with everything kept before.
        hold_budget: whether to evict a token for every new one too, so that no step ends above the budget.
        prompt_length: tokens of the prompt, padding included. Needed if the prompt comes in chunks, or with candidate
            tokens after it: it is then buffered until its last token, and compressed as if it had come at once. A
            warning is logged if the answer seems to have begun before that.
        max_new_tokens: most tokens that will ever come after the prompt, later turns, padding and tokens that are
            evicted again included; cropped tokens do not count. Their room is allocated at once, so that no step moves
            or resizes a buffer. Prompt lookup needs room for its candidates too, rejected ones included.
        storage: "model" for the model's own dtype, "int8" or "fp8" for 8 bits and a scale per row.
        image_mask: (B, S) bool, which tokens of the prompt stand for an image, for methods that ask for it:
            `inputs["input_ids"] == model.config.image_token_id`. Other methods and models without images ignore it.
        replay: what `sparsemm.cache.replay.replay_attention` returns for the prompt, for methods that ask for it; other
            methods ignore it.
        scenario: for "auto", which of the recipe's methods: "known" where the question is part of the prompt, "later"
            where it comes after the prompt was compressed, "long" for long answers, which holds the budget too.
        options: options of the method (`sparsemm.policies.method_options`). Most have `window` (32, the newest prompt
            tokens, which every head keeps and which rate the others) and `pooling_kernel` (5); methods with head scores
            have `rho` (0.1, the share of the slots beyond the window that is split evenly).

    Raises:
        BudgetError: if the method, budget, scores or an option is invalid.
        ScoreTableError: if the table belongs to another model; a bare matrix of scores is not checked.
        CacheError: if the model has layers that this cache does not support, if options exclude each other, if the
            selector needs a replay and has none, or if it needs weights that the model does not expose.
    """
    for name, count in (("prompt_length", prompt_length), ("max_new_tokens", max_new_tokens)):
        if count is not None and (not isinstance(count, Integral) or count < 1):
            raise CacheError(f"{name} is {count!r}", hint="use a whole number of at least 1")
    if storage not in ("model", *STORAGES):
        raise CacheError(f"storage {storage!r} is unknown", hint=f"use model, {' or '.join(STORAGES)}")
    if isinstance(method, Policy):
        if options or budget is not None or scores is not None:
            names = [*options, *["budget"] * (budget is not None), *["scores"] * (scores is not None)]
            what = f"{', '.join(names)} beside a configured method"
            raise BudgetError(what, hint="pass it to the method itself")
        policy = method.for_model(shape_of(model))
    else:
        if method == "auto":
            method, options = automatic(scores, scenario, options)
            hold_budget = hold_budget or scenario == "long"
        policy = make_policy(method, budget, scores, **options).for_model(shape_of(model))
    if hold_budget and (not policy.compresses or max_new_tokens is not None):
        hint = "leave hold_budget out: method full has no budget, and with hold_budget the cache does not grow anyway"
        raise CacheError("hold_budget cannot be combined with method full or with max_new_tokens", hint=hint)
    if hold_budget and not policy.selector.rates_answers:
        what = f"hold_budget with the selector {type(policy.selector).__name__}, which rates no tokens of an answer"
        raise CacheError(what, hint="use recompress=True, or a selector that rates by attention")
    if recompress and policy.compresses and not policy.selector.rates_turns:
        what = f"recompress with the selector {type(policy.selector).__name__}, which rates no later turns"
        raise CacheError(what, hint="keep later turns whole, or use another selector")
    replay = replay if "replay" in policy.reads else [None] * policy.num_layers
    if replay is None or len(replay) != policy.num_layers:
        what = (
            f"the selector {type(policy.selector).__name__} needs a replay of the prompt in {policy.num_layers} layers"
        )
        hint = "pass replay=replay_attention(...) of sparsemm.cache.replay, or use another selector"
        raise CacheError(what, hint=hint)
    cache = build(
        model,
        lambda index: RaggedLayer(
            index,
            policy,
            recompress=recompress,
            hold_budget=hold_budget,
            prompt_length=prompt_length,
            max_new_tokens=max_new_tokens,
            storage=storage,
        ),
    )
    if policy.compresses and "projection" in policy.selector.reads:
        shape = policy.shape
        assert shape is not None
        matrices = projections(model, shape.layers, shape.num_heads, shape.num_kv_heads)
        for layer, projection in zip(cache.ragged, matrices, strict=True):
            layer.projection = projection
    scratch: dict[int, torch.Tensor] = {}
    unsplit: list[Any] = []
    needs_image = policy.compresses and "image" in policy.reads and image_token(model.config) is not None
    for layer, replayed in zip(cache.ragged, replay, strict=True):
        layer.replayed = replayed
        layer.scratch, layer.unsplit, layer.needs_image, layer.image = scratch, unsplit, needs_image, image_mask
    return cache
