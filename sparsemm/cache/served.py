"""Checks which models the cache supports, and which of their layers it compresses."""

from __future__ import annotations

from typing import Any

from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer

from sparsemm.cache.features import cached_call, unsupported
from sparsemm.errors import CacheError
from sparsemm.policies.policy import ModelShape

SUPPORTED = (DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer)  # only the first is compressed


def layers_of(config: Any, where: str) -> tuple[list[Any], list[int]]:
    """Returns transformers' cache layers for a model, and the numbers of those with plain full attention.

    Raises:
        CacheError: if a layer is neither full, sliding nor linear attention, or none is full.
    """
    own = DynamicCache(config=config).layers
    full = [i for i, layer in enumerate(own) if type(layer) is DynamicLayer]
    types = {type(layer).__name__ for layer in own if type(layer) not in SUPPORTED}
    if types or not full or len(own) != config.num_hidden_layers:
        what = f"transformers makes {len(own)} cache layers for the {config.num_hidden_layers} layers of the model"
        if types or not full:
            what = f"unsupported layer types: {', '.join(sorted(types))}" if types else "no layer has full attention"
        hint = "use a model with full-attention layers, alone or beside sliding-window and linear-attention ones"
        raise CacheError(what, where=where, hint=hint)
    return own, full


def tuned_prefix(where: str) -> CacheError:
    """Returns the error for PEFT's prefix tuning, which replaces this cache by its own, which holds the prefix."""
    what = "PEFT's prefix tuning replaces this cache by one of its own"
    return CacheError(what, where=where, hint="generate without prefix tuning, or tune with LoRA")


def check_attention(model: Any, config: Any) -> None:
    """Checks that `ragged_attention` can replace the attention of the text part, which has this config.

    Raises:
        CacheError: if the attention uses an unsupported feature, or is not looked up by name.
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
        what = "the model does not look its attention up in transformers' AttentionInterface"
        raise CacheError(what, where=where, hint="use a model whose attention implementation can be chosen")


def shape_of(model: Any) -> ModelShape:
    """Returns the shape of a model that methods depend on.

    Raises:
        CacheError: if the model has layers that the cache does not support.
    """
    config = model.config.get_text_config()
    _, full = layers_of(config, type(model).__name__)
    check_attention(model, config)
    heads = config.num_attention_heads, getattr(config, "num_key_value_heads", config.num_attention_heads)
    return ModelShape(tuple(full), *heads, config.num_hidden_layers, model.config)


def image_token(config: Any) -> int | None:
    """Returns the number of the token that stands for an image's pixels, from a model's config; None if it has none."""
    token = getattr(config, "image_token_id", None)
    return None if token is None else int(token)
