"""Which models the cache serves, and with which of their layers."""

from __future__ import annotations

from typing import Any

from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer

from sparsemm.cache.features import cached_call, unsupported
from sparsemm.errors import CacheError
from sparsemm.policies.policy import ModelShape

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


def shape_of(model: Any) -> ModelShape:
    """What a method has to know of a model.

    Raises:
        CacheError: if the model has layers the cache cannot serve.
    """
    config = model.config.get_text_config()
    _, full = layers_of(config, type(model).__name__)
    check_attention(model, config)
    heads = config.num_attention_heads, getattr(config, "num_key_value_heads", config.num_attention_heads)
    return ModelShape(tuple(full), *heads, config.num_hidden_layers, model.config)
