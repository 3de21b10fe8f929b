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
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


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
_registered: set[Detour] = set()
_under_way: dict[int, set[int]] = {}  # id of a config -> threads between an update and the attention call after it


def begin(config: Any, function: Callable[..., Any]) -> None:
    """Lead this thread's next attention call under a config to `function`, with the model's own as `implementation`."""
    detour = Detour(config._attn_implementation)
    with _lock:
        if detour not in _registered:
            if str(detour) in ALL_MASK_ATTENTION_FUNCTIONS:
                AttentionMaskInterface.register(detour, ALL_MASK_ATTENTION_FUNCTIONS[str(detour)])
            AttentionInterface.register(detour, partial(function, implementation=str(detour)))
            _registered.add(detour)
        _under_way.setdefault(id(config), set()).add(threading.get_ident())
        config._attn_implementation = {"": detour}  # a bare name would reach configs of other parts


def end(config: Any) -> None:
    """Put the name back, unless another thread is under way."""
    with _lock:
        threads = _under_way.get(id(config), set())
        threads.discard(threading.get_ident())
        if not threads:
            _under_way.pop(id(config), None)
            config._attn_implementation = {"": str(config._attn_implementation)}


def own_attention(module: torch.nn.Module, implementation: str) -> Callable[..., Any]:
    """Returns the attention function that transformers would call for a layer."""
    eager = unwrap(type(module).forward).__globals__.get("eager_attention_forward")
    return ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager)  # type: ignore[no-any-return]
