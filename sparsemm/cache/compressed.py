"""A transformers cache that keeps a different number of tokens in every head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from sparsemm.cache.attention import NAME, Pending
from sparsemm.cache.slab import Slab
from sparsemm.errors import BudgetError, CacheError
from sparsemm.policies import METHODS, Policy, get_policy
from sparsemm.policies.observation import observe, select

if TYPE_CHECKING:
    from sparsemm.scores import ScoreTable


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

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do: storage is made when the prompt is compressed."""
        self.is_initialized = True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Take new keys and values (B, Hkv, T, D); the attention function gets them as `Pending`."""
        self.is_initialized = True
        self.seen += key_states.shape[2]
        pending = Pending(self, key_states, value_states)
        return pending, pending

    def real_tokens(self, mask: torch.Tensor) -> torch.Tensor:
        """Which new tokens are not padding, (B, T) bool, from a causal mask (B, 1, T, T).

        Raises:
            CacheError: if the newest token of a row is padding.
        """
        allowed = mask[:, 0] if mask.dtype == torch.bool else mask[:, 0] >= 0
        valid = allowed[:, -1]
        if not bool(valid[:, -1].all()):
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
        valid = key.new_ones(batch, length, dtype=torch.bool) if mask is None else self.real_tokens(mask)
        lengths = valid.sum(-1).tolist()
        observed = None
        if self.policy.observes and max(lengths) > self.policy.budget:
            observed = observe(query, key, valid, self.policy.window, self.pooling_kernel, scaling)
        slots = torch.from_numpy(self.policy.slots(self.index, lengths, observed)).to(key.device)
        if observed is None:
            keep = valid[:, None].expand(-1, num_kv_heads, -1)
        else:
            keep = select(observed, valid, slots, self.policy.window)
        self.slab, self.slots, self.prompt = Slab(key, value, keep), slots, self.seen

    def append(self, key: torch.Tensor, value: torch.Tensor, valid: torch.Tensor | None) -> None:
        """Add new tokens (B, Hkv, T, D) behind what is kept."""
        assert self.slab is not None
        self.slab.append(key, value, valid)

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
        self.slab, self.slots, self.seen, self.prompt = None, None, 0, 0

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the newest tokens; given as a negative number, as transformers does.

        Raises:
            CacheError: if that reaches into the compressed prompt.
        """
        count = abs(tokens_to_remove)
        if count > self.seen - self.prompt:
            raise CacheError(
                f"cannot remove {count} tokens, only {self.seen - self.prompt} came after the compressed prompt",
                where=f"layer {self.index}",
            )
        if self.slab is not None and count:
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


class CompressedCache(Cache):
    """`past_key_values` of `model.generate`, compressed layer by layer during prefill."""

    layers: list[RaggedLayer]

    def _slabs(self) -> list[Slab]:
        slabs = [layer.slab for layer in self.layers if layer.slab is not None]
        if len(slabs) != len(self.layers):
            raise CacheError("nothing is kept yet", hint="run a prompt through the model first")
        return slabs

    def budgets(self) -> list[torch.Tensor]:
        """Slots kept of the prompt: per layer (B, Hkv) int64.

        Raises:
            CacheError: before the first prompt.
        """
        self._slabs()
        return [layer.slots for layer in self.layers if layer.slots is not None]

    def kept_slots(self) -> torch.Tensor:
        """Rows held now, over all layers and KV heads: (B,) int64, later tokens included.

        Raises:
            CacheError: before the first prompt.
        """
        return torch.stack([slab.lengths.view(slab.batch, -1).sum(-1) for slab in self._slabs()]).sum(0)

    def kept_bytes(self) -> int:
        """Bytes of the keys and values held now."""
        return sum(int(s.lengths.sum()) * 2 * s.keys.shape[-1] * s.keys.element_size() for s in self._slabs())

    def slab_bytes(self) -> int:
        """Bytes allocated for keys and values, slack included."""
        return sum(2 * slab.keys.numel() * slab.keys.element_size() for slab in self._slabs())


def kv_scores(scores: ScoreTable | np.ndarray | torch.Tensor, num_heads: int, num_kv_heads: int) -> np.ndarray:
    """(L, Hkv) float64 from a score table or a matrix of query or KV heads; query groups are summed.

    Raises:
        BudgetError: if the number of heads fits neither.
    """
    if hasattr(scores, "to_kv"):
        return np.asarray(scores.to_kv(num_kv_heads), dtype=np.float64)
    matrix = np.asarray(scores, dtype=np.float64)
    if matrix.ndim == 2 and matrix.shape[1] == num_kv_heads:
        return matrix
    if matrix.ndim == 2 and matrix.shape[1] == num_heads:
        return matrix.reshape(len(matrix), num_kv_heads, -1).sum(-1)
    raise BudgetError(f"scores have shape {matrix.shape}", hint=f"{num_heads} query or {num_kv_heads} KV heads a layer")


def compressed_cache(
    model: Any,
    method: str,
    budget: int,
    scores: ScoreTable | np.ndarray | torch.Tensor | None = None,
    *,
    window: int = 32,
    rho: float = 0.1,
    pooling_kernel: int = 5,
    mode: str = "exact",
    seed: int = 0,
) -> CompressedCache:
    """A fresh cache for one `model.generate(**inputs, past_key_values=cache)`.

    The prompt is compressed once, during its prefill; later tokens, further turns included, are all kept. The
    model's text attention is set to a function that serves this cache and is sdpa for every other one.

    Args:
        model: a multimodal model of transformers.
        method: full, sparsemm, snapkv, pyramidkv, adakv or random.
        budget: mean slots per KV head, window included; ignored by "full".
        scores: head scores for "sparsemm": a ScoreTable, or (L, Hq) or (L, Hkv).
        window: newest prompt tokens every head keeps, also the rows that observe.
        rho: share beyond the window that "sparsemm" and "random" split evenly.
        pooling_kernel: odd width of the average pool over observation scores.
        mode: "exact", or "paper" for the public code's arithmetic.
        seed: of "random".

    Raises:
        BudgetError: if method, budget, window or scores are impossible.
        CacheError: if the model has layers this cache cannot serve.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window_size = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    if kinds != {"full_attention"} or window_size is not None:
        raise CacheError("only full-attention layers are supported", where=type(model).__name__, hint=f"found {kinds}")
    if pooling_kernel < 1 or pooling_kernel % 2 == 0:
        raise BudgetError(f"pooling_kernel is {pooling_kernel}", hint="use an odd number")
    if method in METHODS and method != "sparsemm":
        scores = None
    num_kv_heads = config.num_key_value_heads
    matrix = None if scores is None else kv_scores(scores, config.num_attention_heads, num_kv_heads)
    policy = get_policy(
        method,
        config.num_hidden_layers,
        num_kv_heads,
        budget,
        window,
        scores=matrix,
        rho=rho,
        mode=mode,
        seed=seed,
    )
    if config._attn_implementation != NAME:
        model.set_attn_implementation({"text_config": NAME})
    return CompressedCache(layers=[RaggedLayer(i, policy, pooling_kernel) for i in range(config.num_hidden_layers)])
