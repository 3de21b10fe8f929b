"""The placeholder that a layer returns to the model in place of keys and values, for our attention function."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from sparsemm.attention_probe import Switch
from sparsemm.errors import CacheError


class Pending:
    """Carries new keys and values (B, Hkv, T, D) from `RaggedLayer.update` to the attention function.

    Attributes:
        layer: the `RaggedLayer`.
        switch: redirects the attention call that follows; None if nothing does.
    """

    def __init__(self, layer: Any, key: torch.Tensor, value: torch.Tensor, switch: Switch | None) -> None:
        self.layer, self.key, self.value, self.switch = layer, key, value, switch

    def _refusal(self) -> CacheError:
        if self.switch is not None:
            self.switch.end()
        what = "this cache was made for another model, or the model computes with keys itself"
        return CacheError(what, hint="make the cache for this model; models such as DiffLlama are not supported")

    def __getattr__(self, name: str) -> Any:
        """Raises CacheError: something used this object as a tensor."""
        if name.startswith("__"):
            raise AttributeError(name)
        raise self._refusal()

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Raises CacheError: the model computes with keys and values before its attention function gets them."""
        raise next(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, cls))._refusal()

    def _operator(self, *_: Any) -> Any:
        raise self._refusal()

    __getitem__ = __len__ = __iter__ = __neg__ = __add__ = __sub__ = __mul__ = __truediv__ = __matmul__ = _operator
