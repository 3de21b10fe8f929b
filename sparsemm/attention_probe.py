"""Shows a callback every attention call of a language model, and lets it change what the heads put out.

A layer of transformers looks its attention function up by the name in the model's config. While something of ours wants
the model's calls (an open `observe_attention`, or a compressed cache between a layer's update and the call after it),
that name leads to us. It equals the model's own name, for other threads and in whatever is stored meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache, partial
from inspect import unwrap
from typing import Any

import torch

from sparsemm.compat import define_missing_torchvision_operators
from sparsemm.errors import ModelError
from sparsemm.ops.causal_attention import attend_spans, causal_attention

define_missing_torchvision_operators()
from transformers import AttentionInterface  # noqa: E402
from transformers.masking_utils import (  # noqa: E402
    ALL_MASK_ATTENTION_FUNCTIONS,
    AttentionMaskInterface,
    causal_mask_function,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS  # noqa: E402

UNSUPPORTED = {"softcap", "s_aux", "sinks", "position_bias", "indices", "block_indices"}  # what changes the weights
PLACE = "_attn_implementation_internal"  # where transformers keeps the name; its property takes 10 us a layer and step
Spans = Sequence[tuple[int, int]]
Attention = Callable[..., tuple[torch.Tensor, torch.Tensor | None]]


class Detour(str):
    """The name of a model's own attention implementation, under which another function is registered.

    It equals that name and is stored as that name, but has a place of its own in the tables of transformers, which look
    it up four times in every layer of a step: a hash by identity, of one object per name, costs no Python call.
    """

    __slots__ = ()
    __eq__ = str.__eq__
    __hash__ = object.__hash__  # type: ignore[assignment]

    def __reduce__(self) -> Any:
        return str, (str(self),)


detour_of = cache(Detour)  # the one detour of each name
_lock = threading.Lock()
_holders: dict[int, set[object]] = {}  # id of a config's attributes -> who wants its attention calls at the moment


class Switch:
    """Leads attention calls under one config to a function, with the model's own as `implementation`.

    Args:
        config: of the language model.
        function: takes plain tensors as `plain_attention` does; whatever else it takes is its own affair. It stays
            registered under the name, for every model: calls that nobody wants any more are plain ones.
    """

    def __init__(self, config: Any, function: Callable[..., Any] | None = None) -> None:
        self.names, self.function = vars(config), function
        self.own, self.detour = "", Detour("")

    def __deepcopy__(self, memo: dict[int, Any]) -> Switch:
        return self  # a copy of a cache serves the same model

    def _register(self, own: str) -> None:
        self.own, self.detour = own, detour_of(own)
        if own in ALL_MASK_ATTENTION_FUNCTIONS:
            AttentionMaskInterface.register(self.detour, partial(_own_mask, own))
        if self.function is not None or self.detour not in ALL_ATTENTION_FUNCTIONS:
            AttentionInterface.register(self.detour, partial(self.function or plain_attention, implementation=own))

    def begin(self, holder: object = None) -> None:
        """Lead the attention calls under the config to the function until `end`.

        Args:
            holder: who wants them; None means this thread.
        """
        with _lock:
            own = self.names[PLACE]
            if own != self.own:
                self._register(str(own))
            _holders.setdefault(id(self.names), set()).add(threading.get_ident() if holder is None else holder)
            self.names[PLACE] = self.detour

    def end(self, holder: object = None) -> None:
        """Put the name back, unless somebody else wants the calls."""
        with _lock:
            holders = _holders.get(id(self.names), set())
            holders.discard(threading.get_ident() if holder is None else holder)
            if not holders:
                _holders.pop(id(self.names), None)
                self.names[PLACE] = str(self.names[PLACE])  # another name may have been chosen meanwhile


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """One attention call of one layer."""

    layer: int  # its index in the model
    query: torch.Tensor  # (B, Hq, T, D) post-RoPE, of the model's dtype
    key: torch.Tensor  # (B, Hkv, S, D) post-RoPE; query head h reads KV head h // (Hq / Hkv)
    value: torch.Tensor  # (B, Hkv, S, D)
    scaling: float  # factor of the logits
    _mask: Any = field(repr=False)
    _function: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]] = field(repr=False)

    @property
    def mask(self) -> torch.Tensor | None:
        """(B or 1, 1, T, S) bool, true where the query (third) sees the key; None means causal.

        Raises ModelError if the model's attention implementation takes another kind of mask.
        """
        mask = self._mask
        if mask is None or isinstance(mask, torch.Tensor) and mask.ndim == 4 and mask.dtype == torch.bool:
            return mask
        if isinstance(mask, torch.Tensor) and mask.ndim == 4 and mask.is_floating_point():  # eager attention adds it
            return mask == 0
        hint = "load the model with attn_implementation='sdpa'"
        raise ModelError(f"an attention mask of type {type(mask).__name__} cannot be read", hint=hint)

    def attend(self, query: torch.Tensor | None = None) -> torch.Tensor:
        """Returns what the heads put out, (B, T, Hq, D), by the model's own attention.

        Args:
            query: in place of the call's.
        """
        return self._function(self.query if query is None else query)[0]

    def weights(self, rows: torch.Tensor) -> torch.Tensor:
        """Returns the attention weights of some rows of a batch of one: (Hq, len(rows), S) fp32.

        Args:
            rows: (R,) int64 query positions.
        """
        return attention_weights(self.query, self.key, rows, self.mask, self.scaling)


Callback = Callable[[AttentionCall], torch.Tensor | None]


@dataclass(frozen=True, eq=False)
class _Observer:
    config: Any
    callback: Callback
    spans: Spans | None


_observers: ContextVar[tuple[_Observer, ...]] = ContextVar("sparsemm_attention_observers", default=())


@contextmanager
def observe_attention(model: Any, callback: Callback, spans: Spans | None = None) -> Iterator[None]:
    """Show every attention call of the language model to a callback, while the context is open and in its thread.

    The vision tower keeps its own attention. Contexts may be nested: the inner callback sees a call first, and
    `AttentionCall.attend` leads to the outer one. With a compressed cache only prompts are seen.

    Args:
        model: a language model of transformers, or a multimodal model with one.
        callback: sees each `AttentionCall`. It returns what the heads put out in its place, (B, T, Hq, D); None leaves
            that to the model's own attention.
        spans: (first, stop) of the tokens of every batch row that are no padding, where the whole batch goes through
            in one forward pass without a cache. Full attention then runs over each row's own tokens, without a mask
            of positions x positions: 1 GiB a row at 32K tokens, and no fast kernel takes it.

    Raises:
        ModelError: if no layer of the model looks its attention up under the config's name.
    """
    config = model.config.get_text_config()
    if not any(hasattr(module, "layer_idx") and _config(module) is config for module in model.modules()):
        what = "no layer of the model takes its attention from the language model's config"
        raise ModelError(what, where=type(model).__name__, hint="use the model classes of transformers")
    switch, holder = Switch(config), object()
    token = _observers.set((*_observers.get(), _Observer(config, callback, spans)))
    try:
        switch.begin(holder)
        yield
    finally:
        switch.end(holder)
        _observers.reset(token)


def own_attention(module: torch.nn.Module, implementation: str) -> Attention:
    """Returns the attention function that transformers would call for a layer, shown to whoever observes the model."""
    eager = unwrap(type(module).forward).__globals__.get("eager_attention_forward")
    function: Attention = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager)
    observers = _of(_config(module))
    spans = _common_spans(observers)
    if spans is not None:
        function = partial(_attention_of_spans, function, spans)
    for observer in observers:
        function = partial(_observed_attention, observer.callback, function)
    return function


def plain_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    *,
    implementation: str,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The model's own attention function of (B, H, T, D) tensors, as transformers calls it."""
    own = own_attention(module, implementation)
    return own(module, query, key, value, attention_mask, scaling=scaling, **options)


def attention_weights(
    query: torch.Tensor, key: torch.Tensor, rows: torch.Tensor, mask: torch.Tensor | None, scaling: float
) -> torch.Tensor:
    """Attention of some rows, softmax(q k^T * scaling) in fp32; nothing larger than the result is made.

    Args:
        query: (1, Hq, S, D) post-RoPE.
        key: (1, Hkv, S, D) post-RoPE; query head h reads KV head h // (Hq / Hkv).
        rows: (T,) int64.
        mask: (1, 1, S, S) bool, True where the row sees the key; None means causal.
        scaling: factor of the logits.

    Returns:
        (Hq, T, S) fp32.
    """
    rows = rows.to(query.device)
    grouped = query[0, :, rows].unflatten(0, (key.shape[1], -1)).float()
    logits = torch.einsum("ngtd,nsd->ngts", grouped, key[0].float()).flatten(0, 1) * scaling
    if mask is None:
        seen = torch.arange(key.shape[2], dtype=torch.int64, device=key.device) <= rows[:, None]
    else:
        seen = mask[0, 0, rows]
    return torch.softmax(logits.masked_fill(~seen, float("-inf")), dim=-1)


def _config(module: torch.nn.Module) -> Any:
    return getattr(module, "config", None)


def _of(config: Any) -> list[_Observer]:
    """Who observes a config's attention in this thread, the outermost first."""
    return [observer for observer in _observers.get() if observer.config is config]


def _common_spans(observers: list[_Observer]) -> Spans | None:
    """The spans, where all observers know them: others are shown masks."""
    known = [observer.spans for observer in observers if observer.spans is not None]
    return known[-1] if known and len(known) == len(observers) else None


def _observed_attention(
    callback: Callback,
    function: Attention,
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    def attend(query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        return function(module, query, key, value, attention_mask, scaling=scaling, **options)

    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    output = callback(AttentionCall(layer, query, key, value, factor, attention_mask, attend))
    return attend(query) if output is None else (output, None)


def _attention_of_spans(
    function: Attention,
    spans: Spans,
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Causal attention of each row's own tokens, (B, S, Hq, D); where there is a mask, the model's own attention."""
    if attention_mask is not None:
        return function(module, query, key, value, attention_mask, scaling=scaling, **options)
    names = sorted(name for name in UNSUPPORTED if options.get(name) is not None)
    if names:
        raise ModelError(f"attention with {', '.join(names)} is not supported", where=type(module).__name__)
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    if query.is_cpu:
        firsts, stops = torch.tensor([*zip(*spans, strict=True)], dtype=torch.int64, device="cpu")
        return causal_attention(query, key, value, firsts, stops, factor), None
    return attend_spans(query, key, value, spans, factor), None


def _own_mask(implementation: str, *arguments: Any, **options: Any) -> Any:
    """The mask of the model's own attention; none where attention is causal and all observers know the padding."""
    causal = options.get("mask_function", causal_mask_function) is causal_mask_function
    if causal and options.get("local_size") is None and _common_spans(_of(options.get("config"))) is not None:
        return None
    return ALL_MASK_ATTENTION_FUNCTIONS[implementation](*arguments, **options)
