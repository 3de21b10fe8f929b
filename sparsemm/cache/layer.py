"""One layer of the cache: stores a prompt for its own attention, then only the rows that the policy keeps."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.nn.attention.flex_attention import BlockMask
from transformers.cache_utils import CacheLayerMixin

from sparsemm.attention_probe import Switch
from sparsemm.cache.chunks import ChunkBuffer
from sparsemm.cache.decode_eviction import Eviction
from sparsemm.cache.masks import Mask, newest_rows
from sparsemm.cache.pending import Pending
from sparsemm.cache.projection import Projection
from sparsemm.cache.quantized import QuantizedSlab
from sparsemm.cache.slab import Slab
from sparsemm.errors import CacheError
from sparsemm.policies.layer_shares import LayerShares
from sparsemm.policies.policy import Policy
from sparsemm.policies.selector import Prompt, select


class RaggedLayer(CacheLayerMixin):
    """One layer, which has full keys and values only while its prompt is being attended to.

    Args:
        index: number of the layer among the policy's layers.
        policy, recompress, hold_budget, prompt_length, max_new_tokens, storage: as in `sparsemm.compressed_cache`.
    """

    is_compileable = False
    is_sliding = False
    supports_early_init = False

    def __init__(
        self,
        index: int,
        policy: Policy,
        *,
        recompress: bool = False,
        hold_budget: bool = False,
        prompt_length: int | None = None,
        max_new_tokens: int | None = None,
        storage: str = "model",
    ) -> None:
        super().__init__()
        self.index, self.policy = index, policy
        self.recompress, self.hold_budget = policy.compresses and (recompress or hold_budget), hold_budget
        self.prompt_length, self.max_new_tokens, self.storage = prompt_length, max_new_tokens, storage
        self.projection: Projection | None = None  # output projection of this layer, if the selector reads it
        self.scratch: dict[int, torch.Tensor] = {}  # shared by all layers of a cache
        self.unsplit: list[tuple[RaggedLayer, Prompt, torch.Tensor, torch.Tensor]] = []  # the same
        self.needs_image = False
        self.needs_replay = "replay" in policy.reads
        self.reset()

    def reset(self) -> None:
        """Empties the layer; the next prompt is compressed anew."""
        self.slab: Slab | None = None
        self.slots: torch.Tensor | None = None  # (B, Hkv) int64 rows kept at the last compression
        self.tokens: list[int] = []  # real tokens of each batch row at that time
        self.evicted: list[int] = []  # rows evicted from each batch row by then, over all KV heads
        self.chunks: ChunkBuffer | None = None
        self.eviction: Eviction | None = None
        self.unpadded: torch.Tensor | None = None  # (B, 1) bool, which batch rows had no padding in later turns
        self.seen = 0
        self.barrier = 0  # oldest tokens, which cannot be cropped
        self.image: torch.Tensor | None = None  # (B, S or more) bool, image tokens of the prompt
        self.replayed: torch.Tensor | None = None  # (B, Hkv, S or more) fp32, `Prompt.replay`
        self.unsplit.clear()
        if isinstance(self.policy, LayerShares):
            self.policy = self.policy.with_measured(None)
        self.is_initialized = False

    @property
    def is_croppable(self) -> bool:  # type: ignore[override]
        """Whether the newest tokens can be removed."""
        return not self.hold_budget

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Does nothing but set the flag: storage is allocated when the prompt is compressed."""
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, switch: Switch | None = None, **kwargs: Any
    ) -> Any:
        """Passes new keys and values (B, Hkv, T, D) on to the attention function, as a `Pending` with the `switch`."""
        self.is_initialized = True
        self.seen += key_states.shape[2]
        pending = Pending(self, key_states, value_states, switch)
        return pending, pending

    def real_tokens(self, mask: torch.Tensor | BlockMask, new: int) -> torch.Tensor:
        """Returns which of the `new` newest tokens are not padding, (B, new) bool, from a mask as in `newest_rows`.

        Raises:
            CacheError: if the newest token of a prompt or of a longer turn is padding, or a row is all padding.
        """
        valid = newest_rows(mask, 1)[:, 0, -new:]
        # A decode step is not checked: that would wait for the device.
        if (self.slab is None or new > 1) and not bool(valid[:, -1].all()):
            row = int(valid[:, -1].byte().argmin())
            what, hint = f"the newest token of row {row} is padding", "pad on the left: tokenizer.padding_side = 'left'"
            if not bool(valid[row].any()):
                what, hint = f"row {row} is padding only", "leave the row out, or give it at least one token"
            raise CacheError(what, where=f"layer {self.index}", hint=hint)
        return valid

    def hold(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Mask, scaling: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Adds a chunk (B, Hkv, T, D), and returns the queries, keys and values so far; of queries maybe the newest.

        A selector that accumulates rates the chunk at once. Rows of padding then rate padding alone, which is left out
        in the end.
        """
        if self.chunks is None and self.after_prompt() >= 0:
            return query, key, value
        assert self.prompt_length is not None
        extra = max(self.after_prompt(), 0)
        new = key.shape[2] - extra
        # A single token after longer chunks is most likely the answer's.
        if (
            self.index == 0
            and new == 1
            and self.after_prompt() < 0
            and self.chunks is not None
            and self.chunks.newest > 1
        ):
            what = "sparsemm: nothing is compressed: prompt_length is %d, %d tokens have arrived, the last one alone"
            logging.getLogger(__name__).warning(what, self.prompt_length, self.seen)
        accumulates = self.policy.compresses and self.policy.accumulates
        if self.chunks is None:
            rows = self.prompt_length if self.policy.every_row and not accumulates else self.policy.window
            self.chunks = ChunkBuffer(key, query, self.prompt_length, rows)
        queries, keys, values = self.chunks.add(query[:, :, :new], key[:, :, :new], value[:, :, :new])
        if accumulates:
            batch, end = len(keys), keys.shape[2]
            valid = keys.new_ones(batch, end, dtype=torch.bool)
            if mask is not None:
                valid = newest_rows(mask, 1)[:, 0, :end].expand(batch, -1)
            chunk = Prompt(query[:, :, :new], keys, valid, self.policy.window, scaling)
            self.chunks.accumulated = self.policy.selector.accumulate(self.chunks.accumulated, chunk)
        if extra > 0:
            queries = torch.cat([queries, query[:, :, new:]], dim=2)
            keys, values = torch.cat([keys, key[:, :, new:]], dim=2), torch.cat([values, value[:, :, new:]], dim=2)
        return queries, keys, values

    def after_prompt(self) -> int:
        """Returns the tokens of this forward that come after the prompt; negative while chunks of it are missing."""
        return self.seen - self.prompt_length if self.prompt_length is not None else 0

    def compress(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float
    ) -> None:
        """Stores the keys and values (B, Hkv, S, D) of the prompt that the policy selects; padding is dropped.

        `query` (B, Hq, R, D) holds the newest rows, at least the policy's window or all there are.

        Raises:
            CacheError: if the model and the policy differ in KV heads, the newest token of a row is padding, or the
                method needs to know the image tokens and does not.
        """
        batch, num_kv_heads, length, _ = key.shape
        if num_kv_heads != self.policy.num_kv_heads:
            what = f"the model has {num_kv_heads} KV heads, the cache was made for {self.policy.num_kv_heads}"
            raise CacheError(what, where=f"layer {self.index}", hint="make the cache for this model")
        valid = key.new_ones(batch, length, dtype=torch.bool) if mask is None else self.real_tokens(mask, length)
        self.tokens, self.evicted = valid.sum(-1).tolist(), [0] * batch
        # Mode "paper" compresses a prompt of exactly B tokens, too.
        if not self.policy.compresses or not (self.hold_budget or max(self.tokens) >= self.policy.budget):
            self.store(key, value, valid[:, None].expand(-1, num_kv_heads, -1))
            return
        prompt = self.prompt(query, key, value, valid, scaling)
        rated = self.rate(prompt)
        if isinstance(self.policy, LayerShares):
            self.measure(self.policy, prompt, rated)
        else:
            self.split(prompt, rated)

    def measure(self, policy: LayerShares, prompt: Prompt, rated: torch.Tensor) -> None:
        """Measures this layer; after the last one, splits the budget of each layer.

        Raises:
            CacheError: if later tokens of the same forward are to attend to the compressed prompt.
        """
        if self.after_prompt() > 0:
            what = f"{type(policy).__name__} splits the budget after the last layer, but tokens follow the prompt"
            raise CacheError(what, hint="end a forward with the last token of the prompt")
        if self.index == 0:
            self.unsplit.clear()
        measured = policy.measure(prompt)
        self.unsplit.append((self, replace(prompt, query=prompt.query[:, :, :0]), rated, measured))
        if self.index == policy.num_layers - 1:
            every = np.stack([one.double().cpu().numpy() for *_, one in self.unsplit], axis=1)  # (B, L)
            for layer, waiting, worth, _ in self.unsplit:
                layer.policy = policy.with_measured(every)
                layer.split(waiting, worth)
            self.unsplit.clear()

    def split(self, prompt: Prompt, rated: torch.Tensor) -> None:
        """Stores the positions that fill the slots of each head, by their ratings (B, Hkv, S) fp32."""
        # The window is kept in any case and takes no part in the split.
        slots = self.policy.slots(self.index, self.tokens, rated.masked_fill(~prompt.candidates(), float("-inf")))
        missing = np.maximum(np.array(self.tokens, dtype=np.int64)[:, None] - slots, 0)
        self.evicted = missing.sum(-1).tolist()  # from numbers on the host: nothing waits for the device
        counts = torch.from_numpy(slots).to(rated.device)
        refined = self.policy.selector.refine(rated, counts, prompt)
        keep = select(refined, prompt.valid, counts, self.policy.window)
        limit = None
        if self.hold_budget:
            order = (prompt.valid.cumsum(-1) - 1)[:, None].expand_as(keep)
            limit = self.start_eviction(keep, rated, order)
        self.store(*self.policy.selector.merge(prompt, keep), keep, limit)

    def store(
        self, key: torch.Tensor, value: torch.Tensor, keep: torch.Tensor, limit: torch.Tensor | None = None
    ) -> None:
        """Stores the rows `keep` (B, Hkv, S) bool, with room for one more than `limit` (B * Hkv,) if that is given."""
        room = (self.max_new_tokens, None if limit is None else limit + 1)
        if self.storage == "model":
            self.slab = Slab(key, value, keep, *room)
        else:
            self.slab = QuantizedSlab(key, value, keep, *room, storage=self.storage)
        self.chunks = None
        self.finish(key.shape[2])
        if not self.policy.compresses:
            self.barrier -= min(self.tokens)  # nothing was evicted: everything but padding can be cropped

    def prompt(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor | None,
        valid: torch.Tensor,
        scaling: float,
        heads: torch.Tensor | None = None,
    ) -> Prompt:
        """Returns the selector's input; with `heads` (N,) int64, the batch rows are these KV heads, one each."""
        projection = image = None
        if self.projection is not None:
            weights = self.projection.by_head()
            projection = weights[None] if heads is None else weights[heads][:, None]
        if heads is None and self.needs_image:
            image = self.image_tokens(*valid.shape).to(valid.device)
        return Prompt(
            query,
            key,
            valid,
            self.policy.window,
            scaling,
            value,
            projection,
            self.policy.budget,
            self.index,
            self.scratch if heads is None else {},
            image,
            None if heads is not None or self.chunks is None else self.chunks.accumulated,
            self.worth_in_replay(*key.shape[:3]).to(key.device) if heads is None and self.needs_replay else None,
        )

    def image_tokens(self, batch: int, length: int) -> torch.Tensor:
        """Returns which tokens of the prompt stand for an image, (B, S) bool.

        Raises:
            CacheError: if they are not known, or are those of another prompt.
        """
        if self.image is None:
            what = f"{type(self.policy).__name__} with {type(self.policy.selector).__name__} needs the image tokens"
            hint = "pass image_mask=inputs['input_ids'] == model.config.image_token_id to compressed_cache"
            raise CacheError(what, hint=f"{hint}, for each prompt a new cache")
        if len(self.image) != batch or self.image.shape[1] < length:
            what = f"image_mask has shape {tuple(self.image.shape)}, the prompt has {batch} rows of {length} tokens"
            raise CacheError(what, hint="with beams or several answers repeat each row, as generate does")
        return self.image[:, :length]

    def worth_in_replay(self, batch: int, heads: int, length: int) -> torch.Tensor:
        """Returns what the prompt's positions were worth to a replay, (B, Hkv, S) fp32.

        Raises:
            CacheError: if there is no replay, or it is that of another prompt.
        """
        shape = () if self.replayed is None else tuple(self.replayed.shape)
        if self.replayed is None or shape[:2] != (batch, heads) or shape[2] < length:
            what = f"the replay has shape {shape}, the prompt has {batch} rows, {heads} KV heads and {length} tokens"
            hint = "make a replay for each prompt, and a new cache; with beams or several answers repeat each row"
            raise CacheError(what, where=f"layer {self.index}", hint=hint)
        return self.replayed[..., :length]

    def rate(self, prompt: Prompt) -> torch.Tensor:
        """Returns the rating of each position, (B, Hkv, S) fp32."""
        if self.index == 0:
            self.scratch.clear()
        rated = self.policy.selector.rate(prompt)
        if self.index == self.policy.num_layers - 1:
            self.scratch.clear()
        return rated

    def start_eviction(self, keep: torch.Tensor, rated: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
        """Starts eviction, and returns the row limit of each segment, (B * Hkv,): its kept rows, or B if fewer."""
        kept = keep.flatten(0, 1).sum(-1)
        short = kept.new_tensor(self.tokens).repeat_interleave(keep.shape[1]) < self.policy.budget
        limit = torch.where(short, self.policy.budget, kept)
        self.eviction = Eviction(self.policy, keep.flatten(0, 1), rated.flatten(0, 1), order.flatten(0, 1), limit)
        return limit

    def finish(self, seen: int) -> None:
        """Records the kept rows after a compression; none of the `seen` tokens can be cropped from now on."""
        assert self.slab is not None
        self.slots = self.slab.lengths.view(self.slab.batch, -1).clone()
        self.barrier, self.unpadded = seen, None

    def append(self, key: torch.Tensor, value: torch.Tensor, valid: torch.Tensor | None) -> Slab:
        """Appends new tokens (B, Hkv, T, D), only the true ones of `valid` (B, T) bool, and returns the slab.

        Raises:
            CacheError: if batch size or dtype differ from those of the prompt.
        """
        assert self.slab is not None
        if key.dtype != self.slab.dtype:
            what = f"{key.dtype} after a prompt in {self.slab.dtype}"
            hint = "use autocast for all forwards of a cache or for none"
            raise CacheError(what, where=f"layer {self.index}", hint=hint)
        if len(key) != self.slab.batch:
            raise CacheError(
                f"batch of {len(key)} rows after a prompt of {self.slab.batch}", where=f"layer {self.index}"
            )
        self.slab.append(key, value, valid)
        if valid is not None:  # stays on the device; read by `crop` only
            unpadded = valid if valid.shape[1] == 1 else valid.all(-1, keepdim=True)
            self.unpadded = unpadded if self.unpadded is None else self.unpadded & unpadded
        return self.slab

    def tokens_seen(self) -> list[int]:
        """Returns the real tokens of each batch row so far, evicted ones included; this waits for the device."""
        assert self.slab is not None and self.slots is not None
        if self.eviction is not None:
            return (self.eviction.newest.view(self.slab.batch, -1)[:, 0] + 1).tolist()
        grown = (self.slab.lengths.view(self.slab.batch, -1) - self.slots)[:, 0].tolist()
        return [before + new for before, new in zip(self.tokens, grown, strict=True)]

    def advance(self, count: int) -> None:
        """Counts tokens on the host only.

        Raises:
            CacheError: if there is no room for them.
        """
        assert self.slab is not None
        self.slab.reserve(count)
        self.seen += count

    def get_seq_length(self) -> int:
        """Returns the tokens seen, evicted ones and padding included: the position of the next token."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Returns (tokens seen + new tokens, 0): the mask covers all of them, from the first one."""
        return self.seen + query_length, 0

    def get_max_length(self) -> int:
        """Returns -1: there is no limit."""
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        """Removes the newest -`tokens_to_remove` tokens; transformers passes a negative number.

        Raises:
            CacheError: if the number is positive, if it reaches compressed tokens or an incomplete prompt, if tokens
                were evicted since, or if a later turn had padding, which has no rows.
        """
        where = f"layer {self.index}"
        if tokens_to_remove > 0:
            raise CacheError(
                f"crop({tokens_to_remove})", where=where, hint="pass a negative number to remove that many tokens"
            )
        count = -tokens_to_remove
        if count > 0 and self.chunks is not None:
            raise CacheError("cannot remove tokens of a prompt that is not complete yet", where=where)
        if count == 0 or self.slab is None:
            return
        if self.hold_budget:
            what = "cannot remove tokens: others were evicted for them"
            raise CacheError(what, where=where, hint="make the cache without hold_budget")
        after = self.seen - self.barrier
        if count > after:
            what = f"cannot remove {count} tokens, only {after} came after the compressed prompt"
            raise CacheError(what, where=where)
        if self.unpadded is not None and not bool(self.unpadded.all()):
            raise CacheError("cannot remove tokens after a turn with padding", where=where)
        self.slab.drop_newest(count)
        self.seen -= count

    def batch(self) -> int:
        """Returns the batch size; 0 before the prompt."""
        if self.slab is not None:
            return self.slab.batch
        return 0 if self.chunks is None else len(self.chunks.keys)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps these batch rows, in this order; does nothing before the prompt.

        Raises:
            CacheError: if there is no such row, or none would be left.
        """
        batch = self.batch()
        if batch == 0:
            return
        wrong = indices.dtype == torch.bool and len(indices) != batch
        indices = indices.nonzero().flatten() if indices.dtype == torch.bool else indices
        rows = indices.tolist()
        if wrong or not rows or not all(isinstance(row, int) and -batch <= row < batch for row in rows):
            what = f"batch rows {rows} cannot be selected from {batch}"
            raise CacheError(what, where=f"layer {self.index}", hint=f"select at least one row of 0 to {batch - 1}")
        if self.chunks is not None:
            self.chunks.select_rows(indices.to(self.chunks.keys.device))
            self.image = None if self.image is None else self.image[indices.to(self.image.device)]
            self.replayed = None if self.replayed is None else self.replayed[indices.to(self.replayed.device)]
        if self.slab is not None and self.slots is not None:
            indices = indices.to(self.slab.lengths.device)
            capacity = None
            if self.eviction is not None:
                self.eviction.select_rows(indices, self.slab.batch)
                capacity = self.eviction.limit + 1
            self.slab.select_rows(indices, capacity)
            self.slots = self.slots[indices]
            self.tokens = [self.tokens[i] for i in rows]
            self.evicted = [self.evicted[i] for i in rows]
            self.policy = self.policy.for_rows(rows)
            self.unpadded = None if self.unpadded is None else self.unpadded[indices]

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Reorders the batch rows for beam search."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats every batch row."""
        self.batch_select_indices(
            torch.arange(self.batch(), dtype=torch.int64, device="cpu").repeat_interleave(repeats)
        )
