"""One layer of the cache: a prompt comes in whole, is attended to, and leaves only what its policy keeps."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import CacheLayerMixin

from sparsemm.cache.attention import Pending
from sparsemm.cache.slab import Slab
from sparsemm.errors import CacheError
from sparsemm.policies import Policy
from sparsemm.policies.observation import select


class RaggedLayer(CacheLayerMixin):
    """One layer: full keys and values live only while its prompt is being attended to."""

    is_compileable = False
    is_sliding = False
    is_croppable = True
    supports_early_init = False

    def __init__(self, index: int, policy: Policy, pooling_kernel: int) -> None:
        super().__init__()
        self.index, self.policy, self.pooling_kernel = index, policy, pooling_kernel
        self.slab: Slab | None = None
        self.slots: torch.Tensor | None = None  # (B, Hkv) int64, what was kept of the prompt
        self.seen = 0
        self.prompt = 0  # tokens seen when the prompt was compressed
        self.gaps: torch.Tensor | None = None  # () bool, whether a later turn held padding

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do: storage is made when the prompt is compressed."""
        self.is_initialized = True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Take new keys and values (B, Hkv, T, D); the attention function gets them as `Pending`."""
        self.is_initialized = True
        self.seen += key_states.shape[2]
        pending = Pending(self, key_states, value_states)
        return pending, pending

    def real_tokens(self, mask: torch.Tensor, new: int) -> torch.Tensor:
        """Which of the `new` newest tokens are not padding: (B, new) bool from a causal mask (B, 1, new, tokens).

        Raises:
            CacheError: if the newest token of a prompt or of a longer turn is padding.
        """
        newest = mask[:, 0, -1, -new:]
        valid = newest if newest.dtype == torch.bool else newest >= 0
        # A single later token is not checked: that would wait for the device at every step of decoding.
        if (self.slab is None or new > 1) and not bool(valid[:, -1].all()):
            raise CacheError(
                "the newest token of a row is padding",
                where=f"layer {self.index}",
                hint="pad on the left: processor.tokenizer.padding_side = 'left'",
            )
        return valid

    def compress(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float
    ) -> None:
        """Keep what the policy chooses of the prompt's keys and values (B, Hkv, S, D); padding is dropped."""
        batch, num_kv_heads, length, _ = key.shape
        valid = key.new_ones(batch, length, dtype=torch.bool) if mask is None else self.real_tokens(mask, length)
        lengths = valid.sum(-1).tolist()
        observed = None
        if self.policy.compresses and max(lengths) >= self.policy.budget:  # "paper" cuts a prompt of B tokens already
            observed = self.policy.rate(query, key, valid, self.policy.window, self.pooling_kernel, scaling)
        keep = valid[:, None].expand(-1, num_kv_heads, -1)
        if observed is not None:
            slots = torch.from_numpy(self.policy.slots(self.index, lengths, observed)).to(key.device)
            keep = select(observed, valid, slots, self.policy.window)
        self.slab = Slab(key, value, keep)
        self.slots = self.slab.lengths.view(batch, num_kv_heads)
        self.prompt = self.seen

    def append(self, key: torch.Tensor, value: torch.Tensor, valid: torch.Tensor | None) -> None:
        """Add new tokens (B, Hkv, T, D) behind what is kept; with `valid` (B, T) bool only the true ones.

        Raises:
            CacheError: if the batch is not the prompt's.
        """
        assert self.slab is not None
        if len(key) != self.slab.batch:
            raise CacheError(
                f"batch of {len(key)} rows after a prompt of {self.slab.batch}", where=f"layer {self.index}"
            )
        self.slab.append(key, value, valid)
        if valid is not None:  # stays on the device; read by `crop` only
            self.gaps = self.gaps | ~valid.all() if self.gaps is not None else ~valid.all()

    def get_seq_length(self) -> int:
        """Tokens seen, evicted ones and padding included: positions go on from here."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(tokens seen + new tokens, 0)."""
        return self.seen + query_length, 0

    def get_max_length(self) -> int:
        """-1: there is no limit."""
        return -1

    def reset(self) -> None:
        """Forget everything; the next prompt is compressed anew."""
        self.slab, self.slots, self.gaps, self.seen, self.prompt = None, None, None, 0, 0
        self.is_initialized = False

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the newest tokens; given as a negative number, as transformers does.

        Raises:
            CacheError: if the number is positive, if that reaches into the compressed prompt, or if a later turn held
                padding, whose rows are not there to be removed.
        """
        where = f"layer {self.index}"
        if tokens_to_remove > 0:
            raise CacheError(
                f"crop({tokens_to_remove})", where=where, hint="a negative number removes that many tokens"
            )
        count = -tokens_to_remove
        if count == 0 or self.slab is None:
            return
        after = self.seen - self.prompt
        if count > after:
            what = f"cannot remove {count} tokens, only {after} came after the compressed prompt"
            raise CacheError(what, where=where)
        if self.gaps is not None and bool(self.gaps):
            raise CacheError("cannot remove tokens after a turn with padding", where=where)
        self.slab.drop_newest(count)
        self.seen -= count

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these batch rows, in this order."""
        if self.slab is not None and self.slots is not None:
            indices = indices.to(self.slab.lengths.device)
            indices = indices.nonzero().flatten() if indices.dtype == torch.bool else indices
            self.slab.select_rows(indices)
            self.slots = self.slots[indices]

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Reorder the batch rows for beam search."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every batch row."""
        if self.slab is not None:
            rows = torch.arange(self.slab.batch, device=self.slab.lengths.device)
            self.batch_select_indices(rows.repeat_interleave(repeats))
