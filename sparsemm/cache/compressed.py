"""A transformers cache that keeps a different number of tokens in every head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers.cache_utils import Cache

from sparsemm.cache.attention import NAME
from sparsemm.cache.layer import RaggedLayer
from sparsemm.cache.slab import Slab
from sparsemm.errors import BudgetError, CacheError
from sparsemm.policies import METHODS, NEED_SCORES, get_policy

if TYPE_CHECKING:
    from sparsemm.scores import ScoreTable


class CompressedCache(Cache):
    """`past_key_values` of `model.generate`, compressed layer by layer during prefill."""

    layers: list[Any]  # of RaggedLayer; a list is invariant

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


def _set_attention(model: Any, config: Any) -> None:
    if config._attn_implementation == NAME:
        return
    # Only the text part: a bare name would reach the vision tower too.
    part = next((key for key in model.config.sub_configs if getattr(model.config, key) is config), None)
    model.set_attn_implementation(NAME if part is None else {part: NAME})
    if config._attn_implementation != NAME:
        raise CacheError("the model does not let its attention be chosen", where=type(model).__name__)


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

    The prompt is compressed once, right after its prefill, which must be one forward (no `prefill_chunk_size`, no
    candidate tokens in it); later tokens, further turns included, are all kept and never compressed. The model's
    text attention is set to a function that serves this cache and is sdpa for every other one.

    Args:
        model: a generating model of transformers, multimodal or text only.
        method: one of `sparsemm.policies.METHODS`.
        budget: mean slots per KV head, window included; ignored by "full".
        scores: head scores for "sparsemm" and "sparsemm-adaptive": a ScoreTable, or (L, Hq) or (L, Hkv).
        window: newest prompt tokens every head keeps, also the rows that observe.
        rho: share beyond the window that these two and "random" split evenly.
        pooling_kernel: odd width of the average pool over observation scores.
        mode: "exact", or "paper" for the public code's arithmetic.
        seed: of "random".

    Raises:
        BudgetError: if method, budget, window or scores are impossible.
        ScoreTableError: if the table belongs to another model; the bare matrix of a table is not checked.
        CacheError: if the model has layers this cache cannot serve.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window_size = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    if kinds != {"full_attention"} or window_size is not None:
        raise CacheError("only full-attention layers are supported", where=type(model).__name__, hint=f"found {kinds}")
    if pooling_kernel < 1 or pooling_kernel % 2 == 0:
        raise BudgetError(f"pooling_kernel is {pooling_kernel}", hint="use an odd number")
    if method in METHODS and method not in NEED_SCORES:
        scores = None
    num_kv_heads = config.num_key_value_heads
    if scores is not None and hasattr(scores, "check_model"):
        scores.check_model(model.config)
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
    _set_attention(model, config)
    return CompressedCache(layers=[RaggedLayer(i, policy, pooling_kernel) for i in range(config.num_hidden_layers)])
