"""Which models the cache serves, with which of their layers, and the policy of a method for one of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer

from sparsemm.cache.features import cached_call, unsupported
from sparsemm.errors import BudgetError, CacheError
from sparsemm.policies import Policy, get_policy, policy_class

if TYPE_CHECKING:
    from sparsemm.scores import ScoreTable

SERVED = (DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer)  # the first is compressed


def layers_of(config: Any, where: str) -> tuple[list[Any], list[int]]:
    """What transformers would make of a model's layers, and which of them are plain full attention.

    Raises:
        CacheError: if a layer is neither full, sliding nor linear attention, or none is full.
    """
    own = DynamicCache(config=config).layers
    full = [i for i, layer in enumerate(own) if type(layer) is DynamicLayer]
    others = {type(layer).__name__ for layer in own if type(layer) not in SERVED}
    if others or not full or len(own) != config.num_hidden_layers:
        found = ", ".join(sorted(others)) or f"{len(full)} full of {config.num_hidden_layers}"
        hint = f"full-attention, sliding-window and linear-attention layers are served; found {found}"
        raise CacheError("the model has no full-attention layer to compress, or other layers", where=where, hint=hint)
    return own, full


def tuned_prefix(where: str) -> CacheError:
    """The error of PEFT's prefix tuning, which generates with a cache of its own, the prefix, instead of this one."""
    what = "PEFT's prefix tuning puts a cache of its own in place of this one"
    return CacheError(what, where=where, hint="generate without it, or tune with LoRA")


def check_attention(model: Any, config: Any) -> None:
    """Check that `ragged_attention` can stand in for the attention of the text part, whose config this is.

    Raises:
        CacheError: if the attention has what that does not compute, or is not looked up under a name.
    """
    where = type(model).__name__
    tuned = getattr(model, "active_peft_config", None)
    if tuned is not None and tuned.peft_type in ("PREFIX_TUNING", "CARTRIDGE"):
        raise tuned_prefix(where)
    calls = [(module, cached_call(type(module).forward)) for module in model.modules()]
    attentions = [(module, call) for module, call in calls if call is not None]
    features = {name for module, call in attentions for name in unsupported(module, call)}
    if features or model.config.is_encoder_decoder:
        what = f"attention with {', '.join(sorted(features))}" if features else "a decoder with an encoder"
        raise CacheError(f"{what} is not supported", where=where, hint="use one of transformers' caches")
    by_name = all(call.looked_up and module.config is config for module, call in attentions)
    if not attentions or not by_name:
        what = "the model does not let its attention be chosen"
        raise CacheError(what, where=where, hint="its layers must look it up in transformers' AttentionInterface")


def kv_scores(scores: ScoreTable | np.ndarray | torch.Tensor, num_heads: int, num_kv_heads: int) -> np.ndarray:
    """(L, Hkv) float64 from a score table or a matrix of query or KV heads; query groups are summed.

    Raises:
        BudgetError: if the number of heads fits neither, or these are no numbers.
    """
    if hasattr(scores, "to_kv"):
        return np.asarray(scores.to_kv(num_kv_heads), dtype=np.float64)
    if isinstance(scores, torch.Tensor):
        scores = scores.detach().double().cpu().numpy()
    try:
        matrix = np.asarray(scores, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise BudgetError(f"scores are no numbers: {error}", hint="pass ScoreTable.load(...) or a matrix") from error
    if matrix.ndim == 2 and matrix.shape[1] == num_kv_heads:
        return matrix
    if matrix.ndim == 2 and matrix.shape[1] == num_heads:
        return matrix.reshape(len(matrix), num_kv_heads, -1).sum(-1)
    raise BudgetError(f"scores have shape {matrix.shape}", hint=f"{num_heads} query or {num_kv_heads} KV heads a layer")


def policy_of(
    model: Any,
    method: str | Policy,
    budget: int | None,
    scores: ScoreTable | np.ndarray | torch.Tensor | None = None,
    **options: Any,
) -> Policy:
    """The policy of a method for a model's full-attention layers; a ready one is checked and returned.

    Args:
        method, budget, scores: as `compressed_cache`.
        options: window, rho, mode, seed and adapt, as there.

    Raises:
        BudgetError: if method, budget, window or scores are impossible, or a ready policy is of another shape.
        ScoreTableError: if the table belongs to another model.
        CacheError: if the model has layers the cache cannot serve.
    """
    config = model.config.get_text_config()
    check_attention(model, config)
    _, full = layers_of(config, type(model).__name__)
    shape = (len(full), getattr(config, "num_key_value_heads", config.num_attention_heads))
    if isinstance(method, Policy):
        if (method.num_layers, method.num_kv_heads) != shape:
            found = (method.num_layers, method.num_kv_heads)
            raise BudgetError(f"the policy is for {found} layers and KV heads, the model has {shape}")
        return method
    kind = policy_class(method)
    if not kind.needs_scores:
        scores = None
    if not kind.compresses and budget is None:
        budget = 0
    if budget is None:
        raise BudgetError(f"{method} needs a budget")
    if scores is not None and hasattr(scores, "check_model"):
        scores.check_model(model.config)
    matrix = None if scores is None else kv_scores(scores, config.num_attention_heads, shape[1])
    if matrix is not None and len(matrix) == config.num_hidden_layers:
        matrix = matrix[full]
    return get_policy(method, *shape, budget, scores=matrix, **options)
