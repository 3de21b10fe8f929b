"""Leads single attention calls of a model to a function of ours; at rest its config is as it was.

A layer of transformers hands its keys to the cache and then looks its attention up by the name in its config. Between
the two, and only there, that name leads to us. Another thread that reads it meanwhile reads the same name.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from inspect import unwrap
from typing import Any

import torch
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sparsemm.errors import CacheError


class Detour(str):
    """The name of a model's own attention implementation, under which another function is registered.

    It equals that name and is stored as that name, but has a place of its own in the tables of transformers.
    """

    __slots__ = ()
    __eq__ = str.__eq__

    def __hash__(self) -> int:
        return hash(("sparsemm", str(self)))

    def __reduce__(self) -> Any:
        return str, (str(self),)


_lock = threading.Lock()
_under_way: dict[int, set[int]] = {}  # id of a config -> threads between an update and the attention call after it
PLACE = "_attn_implementation_internal"  # where transformers keeps the name; its property takes 10 us a layer and step


class Switch:
    """Leads single attention calls under one config to a function, with the model's own as `implementation`."""

    def __init__(self, config: Any, function: Callable[..., Any]) -> None:
        self.names, self.function = vars(config), function
        self.own, self.detour = "", Detour("")

    def __deepcopy__(self, memo: dict[int, Any]) -> Switch:
        return self  # a copy of a cache serves the same model

    def _register(self, own: str) -> None:
        self.own, self.detour = own, Detour(own)
        if own in ALL_MASK_ATTENTION_FUNCTIONS:
            AttentionMaskInterface.register(self.detour, ALL_MASK_ATTENTION_FUNCTIONS[own])
        AttentionInterface.register(self.detour, partial(self.function, implementation=own))

    def begin(self) -> None:
        """Lead this thread's next attention call under the config to the function."""
        with _lock:
            own = self.names[PLACE]
            if own != self.own:
                self._register(str(own))
            _under_way.setdefault(id(self.names), set()).add(threading.get_ident())
            self.names[PLACE] = self.detour

    def end(self) -> None:
        """Put the name back, unless another thread is under way."""
        with _lock:
            threads = _under_way.get(id(self.names), set())
            threads.discard(threading.get_ident())
            if not threads:
                _under_way.pop(id(self.names), None)
                self.names[PLACE] = self.own


class Pending:
    """New keys and values (B, Hkv, T, D) on their way from `RaggedLayer.update` to the attention function.

    Attributes:
        layer: the `RaggedLayer`.
        switch: leads the attention call that follows to the attention function; None if nothing does.
    """

    def __init__(self, layer: Any, key: torch.Tensor, value: torch.Tensor, switch: Switch | None) -> None:
        self.layer, self.key, self.value, self.switch = layer, key, value, switch

    def _refusal(self) -> CacheError:
        if self.switch is not None:
            self.switch.end()
        what = "this cache is another's, or the model computes with keys itself"
        return CacheError(what, hint="make the cache for this model; DiffLlama and its like are not served")

    def __getattr__(self, name: str) -> Any:
        """Whatever takes this for a tensor ends here."""
        if name.startswith("__"):
            raise AttributeError(name)
        raise self._refusal()

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """As does a model that computes with keys and values before they reach an attention function."""
        raise next(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, cls))._refusal()

    def _operator(self, *_: Any) -> Any:
        raise self._refusal()

    __getitem__ = __len__ = __iter__ = __neg__ = __add__ = __sub__ = __mul__ = __truediv__ = __matmul__ = _operator


def own_attention(module: torch.nn.Module, implementation: str) -> Callable[..., Any]:
    """Returns the attention function that transformers would call for a layer."""
    eager = unwrap(type(module).forward).__globals__.get("eager_attention_forward")
    return ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager)  # type: ignore[no-any-return]
