"""One layer of the cache: a prompt comes in whole, is attended to, and leaves only what its policy keeps."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from torch.nn.attention.flex_attention import BlockMask
from transformers.cache_utils import CacheLayerMixin

from sparsemm.attention_probe import Switch
from sparsemm.budgets import Slots
from sparsemm.cache.decode_eviction import Eviction
from sparsemm.cache.held import Held
from sparsemm.cache.masks import newest_rows
from sparsemm.cache.pending import Pending
from sparsemm.cache.projection import Projection
from sparsemm.cache.quantized import QuantizedSlab
from sparsemm.cache.slab import Slab
from sparsemm.errors import CacheError
from sparsemm.policies.policy import Policy
from sparsemm.policies.selector import Prompt, select


class RaggedLayer(CacheLayerMixin):
    """One layer: full keys and values live only while its prompt is being attended to.

    Args:
        index: of the policy's layers.
        policy, recompress, hold_budget, prompt_length, max_new_tokens, storage: as
            `sparsemm.compressed_cache`.
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
        self.projection: Projection | None = None  # of this layer's attention, where the selector reads it
        self.scratch: dict[int, torch.Tensor] = {}  # one for all layers of a cache
        self.reset()

    def reset(self) -> None:
        """Forget everything; the next prompt is compressed anew."""
        self.slab: Slab | None = None
        self.slots: torch.Tensor | None = None  # (B, Hkv) int64, what was kept when it was last compressed
        self.tokens: list[int] = []  # real tokens of each batch row at that time
        self.evicted: list[int] = []  # rows each batch row had lost by then, over all KV heads
        self.held: Held | None = None
        self.eviction: Eviction | None = None
        self.whole: torch.Tensor | None = None  # (B, 1) bool, which rows had no padding in later turns
        self.seen = 0
        self.barrier = 0  # tokens seen that cannot be cropped
        self.is_initialized = False

    @property
    def is_croppable(self) -> bool:  # type: ignore[override]
        """Whether the newest tokens can be taken back."""
        return not self.hold_budget

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do: storage is made when the prompt is compressed."""
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, switch: Switch | None = None, **kwargs: Any
    ) -> Any:
        """Take new keys and values (B, Hkv, T, D); the attention function gets them as `Pending`, led by `switch`."""
        self.is_initialized = True
        self.seen += key_states.shape[2]
        pending = Pending(self, key_states, value_states, switch)
        return pending, pending

    def real_tokens(self, mask: torch.Tensor | BlockMask, new: int) -> torch.Tensor:
        """Which of the `new` newest tokens are not padding: (B, new) bool from a mask that `newest_rows` takes.

        Raises:
            CacheError: if the newest token of a prompt or of a longer turn is padding, or a row is nothing else.
        """
        valid = newest_rows(mask, 1)[:, 0, -new:]
        # A single later token is not checked: that would wait for the device at every step of decoding.
        if (self.slab is None or new > 1) and not bool(valid[:, -1].all()):
            row = int(valid[:, -1].byte().argmin())
            what, hint = f"the newest token of row {row} is padding", "pad on the left: tokenizer.padding_side = 'left'"
            if not bool(valid[row].any()):
                what, hint = f"row {row} is padding only", "leave the row out, or give it at least one token"
            raise CacheError(what, where=f"layer {self.index}", hint=hint)
        return valid

    def hold(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The prompt's queries, keys and values so far, this chunk (B, Hkv, T, D) included; queries may be fewer."""
        if self.held is None and self.after_prompt() >= 0:
            return query, key, value
        assert self.prompt_length is not None
        over = max(self.after_prompt(), 0)
        new = key.shape[2] - over
        # Chunks become longer than one token or never are: a single one behind them is most likely of the answer.
        if self.index == 0 and new == 1 and self.after_prompt() < 0 and self.held is not None and self.held.newest > 1:
            what = "sparsemm: nothing is compressed: prompt_length is %d, %d tokens have come, the last one alone"
            logging.getLogger(__name__).warning(what, self.prompt_length, self.seen)
        if self.held is None:
            rows = self.prompt_length if self.policy.selector.every_row else self.policy.window
            self.held = Held(key, query, self.prompt_length, rows)
        queries, keys, values = self.held.add(query[:, :, :new], key[:, :, :new], value[:, :, :new])
        if over > 0:
            queries = torch.cat([queries, query[:, :, new:]], dim=2)
            keys, values = torch.cat([keys, key[:, :, new:]], dim=2), torch.cat([values, value[:, :, new:]], dim=2)
        return queries, keys, values

    def after_prompt(self) -> int:
        """Tokens of this forward that lie behind the prompt; negative while chunks of it are missing."""
        return self.seen - self.prompt_length if self.prompt_length is not None else 0

    def compress(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float
    ) -> None:
        """Keep what the policy chooses of the prompt's keys and values (B, Hkv, S, D); padding is dropped.

        `query` (B, Hq, R, D) are its last rows, at least the policy's window or all there are.

        Raises:
            CacheError: if the model does not have the KV heads of the policy, or the newest token of a row is padding.
        """
        batch, num_kv_heads, length, _ = key.shape
        if num_kv_heads != self.policy.num_kv_heads:
            what = f"the model has {num_kv_heads} KV heads, the cache was made for {self.policy.num_kv_heads}"
            raise CacheError(what, where=f"layer {self.index}", hint="make the cache for this model")
        valid = key.new_ones(batch, length, dtype=torch.bool) if mask is None else self.real_tokens(mask, length)
        self.tokens, self.evicted = valid.sum(-1).tolist(), [0] * batch
        rated, keep = None, valid[:, None].expand(-1, num_kv_heads, -1)
        # "paper" cuts a prompt of B tokens already.
        if self.policy.compresses and (self.hold_budget or max(self.tokens) >= self.policy.budget):
            prompt = self.prompt(query, key, value, valid, scaling)
            rated, slots = self.rate(prompt)
            missing = np.maximum(np.array(self.tokens, dtype=np.int64)[:, None] - slots, 0)
            self.evicted = missing.sum(-1).tolist()  # known on the host: nothing waits for the device
            held = torch.from_numpy(slots).to(key.device)
            keep = select(self.policy.selector.refine(rated, held, prompt), valid, held, self.policy.window)
        limit = None
        if self.hold_budget and rated is not None:
            order = (valid.cumsum(-1) - 1)[:, None].expand_as(keep)
            limit = self.watch(keep, rated, order)
        room = (self.max_new_tokens, None if limit is None else limit + 1)
        if self.storage == "model":
            self.slab = Slab(key, value, keep, *room)
        else:
            self.slab = QuantizedSlab(key, value, keep, *room, storage=self.storage)
        self.held = None
        self.settle(length)
        if not self.policy.compresses:
            self.barrier -= min(self.tokens)  # nothing was evicted: everything but padding can be taken back

    def prompt(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor | None,
        valid: torch.Tensor,
        scaling: float,
        heads: torch.Tensor | None = None,
    ) -> Prompt:
        """What the selector may look at; with `heads` (N,) int64 the batch rows are these KV heads, one each."""
        projection = None
        if self.projection is not None:
            whole = self.projection.by_head()
            projection = whole[None] if heads is None else whole[heads][:, None]
        budget, scratch = self.policy.budget, self.scratch if heads is None else {}
        return Prompt(query, key, valid, self.policy.window, scaling, value, projection, budget, self.index, scratch)

    def rate(self, prompt: Prompt) -> tuple[torch.Tensor, Slots]:
        """What positions are worth, (B, Hkv, S) fp32, and how many of them each head keeps, (B, Hkv) int64."""
        if self.index == 0:
            self.scratch.clear()
        rated = self.policy.selector.rate(prompt)
        if self.index == self.policy.num_layers - 1:
            self.scratch.clear()
        # What is kept in any case takes no part in the split.
        return rated, self.policy.slots(self.index, self.tokens, rated.masked_fill(~prompt.candidates(), float("-inf")))

    def watch(self, keep: torch.Tensor, rated: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
        """Start evicting; the rows (B * Hkv,) each stretch may hold: what it kept, or B while that is not reached."""
        kept = keep.flatten(0, 1).sum(-1)
        short = kept.new_tensor(self.tokens).repeat_interleave(keep.shape[1]) < self.policy.budget
        limit = torch.where(short, self.policy.budget, kept)
        self.eviction = Eviction(self.policy, keep.flatten(0, 1), rated.flatten(0, 1), order.flatten(0, 1), limit)
        return limit

    def settle(self, seen: int) -> None:
        """Note what is kept, and that none of the `seen` tokens can be cropped any more."""
        assert self.slab is not None
        self.slots = self.slab.lengths.view(self.slab.batch, -1).clone()
        self.barrier, self.whole = seen, None

    def append(self, key: torch.Tensor, value: torch.Tensor, valid: torch.Tensor | None) -> Slab:
        """Add new tokens (B, Hkv, T, D) behind what is kept; with `valid` (B, T) bool only the true ones.

        Returns:
            Where they were added.

        Raises:
            CacheError: if batch or dtype are not the prompt's.
        """
        assert self.slab is not None
        if key.dtype != self.slab.dtype:
            what, hint = f"{key.dtype} after a prompt in {self.slab.dtype}", "autocast all forwards of a cache or none"
            raise CacheError(what, where=f"layer {self.index}", hint=hint)
        if len(key) != self.slab.batch:
            raise CacheError(
                f"batch of {len(key)} rows after a prompt of {self.slab.batch}", where=f"layer {self.index}"
            )
        self.slab.append(key, value, valid)
        if valid is not None:  # stays on the device; read by `crop` only
            whole = valid if valid.shape[1] == 1 else valid.all(-1, keepdim=True)
            self.whole = whole if self.whole is None else self.whole & whole
        return self.slab

    def tokens_seen(self) -> list[int]:
        """Real tokens of each batch row so far, evicted ones included; reads the device."""
        assert self.slab is not None and self.slots is not None
        if self.eviction is not None:
            return (self.eviction.newest.view(self.slab.batch, -1)[:, 0] + 1).tolist()
        grown = (self.slab.lengths.view(self.slab.batch, -1) - self.slots)[:, 0].tolist()
        return [before + new for before, new in zip(self.tokens, grown, strict=True)]

    def advance(self, count: int) -> None:
        """Count tokens on the host only.

        Raises:
            CacheError: if there is no room for them.
        """
        assert self.slab is not None
        self.slab.reserve(count)
        self.seen += count

    def get_seq_length(self) -> int:
        """Tokens seen, evicted ones and padding included: positions go on from here."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(tokens seen + new tokens, 0)."""
        return self.seen + query_length, 0

    def get_max_length(self) -> int:
        """-1: there is no limit."""
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the newest tokens; given as a negative number, as transformers does.

        Raises:
            CacheError: if the number is positive, if that reaches into what was compressed or a prompt that is not
                whole, if tokens were evicted since, or if a later turn held padding, whose rows are not there.
        """
        where = f"layer {self.index}"
        if tokens_to_remove > 0:
            raise CacheError(
                f"crop({tokens_to_remove})", where=where, hint="a negative number removes that many tokens"
            )
        count = -tokens_to_remove
        if count > 0 and self.held is not None:
            raise CacheError("cannot remove tokens of a prompt that is not whole yet", where=where)
        if count == 0 or self.slab is None:
            return
        if self.hold_budget:
            raise CacheError("cannot remove tokens: others were evicted for them", where=where, hint="no hold_budget")
        after = self.seen - self.barrier
        if count > after:
            what = f"cannot remove {count} tokens, only {after} came after the compressed prompt"
            raise CacheError(what, where=where)
        if self.whole is not None and not bool(self.whole.all()):
            raise CacheError("cannot remove tokens after a turn with padding", where=where)
        self.slab.drop_newest(count)
        self.seen -= count

    def batch(self) -> int:
        """Rows of the prompt; 0 before it."""
        if self.slab is not None:
            return self.slab.batch
        return 0 if self.held is None else len(self.held.keys)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these batch rows, in this order; before a prompt there are none.

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
            raise CacheError(f"batch rows {rows} of {batch}", where=f"layer {self.index}", hint="a new cache for none")
        if self.held is not None:
            self.held.select_rows(indices.to(self.held.keys.device))
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
            self.whole = None if self.whole is None else self.whole[indices]

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Reorder the batch rows for beam search."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every batch row."""
        self.batch_select_indices(
            torch.arange(self.batch(), dtype=torch.int64, device="cpu").repeat_interleave(repeats)
        )
