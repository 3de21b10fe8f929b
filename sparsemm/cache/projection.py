"""The output projection of an attention layer, for selectors that rate what a value adds to the residual stream."""

from __future__ import annotations

import weakref
from typing import Any

import torch

from sparsemm.cache.features import cached_call
from sparsemm.errors import CacheError

NAMES = ("o_proj", "out_proj", "dense", "wo")  # what transformers' attention layers call it


class Projection:
    """A weak reference to the output projection of one layer, so that copies of a cache never copy it.

    Args:
        module: the attention layer.
        heads, kv_heads: its numbers of query and KV heads.

    Raises:
        CacheError: if the layer has none, or its weights are packed (8 or 4 bits) and cannot be read as a matrix.
    """

    def __init__(self, module: torch.nn.Module, heads: int, kv_heads: int) -> None:
        self.module, self.heads, self.kv_heads = weakref.ref(module), heads, kv_heads
        self.where = type(module).__name__
        self._weight()

    def _weight(self) -> torch.Tensor:
        module = self.module()
        linear = next((layer for name in NAMES if (layer := getattr(module, name, None)) is not None), None)
        weight = getattr(linear, "weight", None)
        head_dim = getattr(module, "head_dim", None)
        if (
            not isinstance(weight, torch.Tensor)
            or not weight.is_floating_point()
            or weight.dim() != 2
            or weight.shape[1] % self.heads
            or head_dim not in (None, weight.shape[1] // self.heads)
        ):
            what = "the output projection of the attention cannot be read as a matrix (hidden, heads * head_dim)"
            raise CacheError(what, where=self.where, hint="choose a selector that needs none, or unpacked weights")
        return weight.detach()

    def by_head(self) -> torch.Tensor:
        """Returns a view of the weights, (Hkv, G, D, M): a matrix for the output of each query head.

        Raises:
            CacheError: if the weights are offloaded while the layer runs.
        """
        weight = self._weight()
        if weight.is_meta:
            hint = "choose a selector that needs none, or leave the layer on its device"
            raise CacheError("the weights of the output projection are offloaded", where=self.where, hint=hint)
        return weight.unflatten(1, (self.kv_heads, self.heads // self.kv_heads, -1)).permute(1, 2, 3, 0)


def projections(model: Any, layers: tuple[int, ...], heads: int, kv_heads: int) -> list[Projection]:
    """Returns the output projections of the layers with these numbers.

    Raises:
        CacheError: if one cannot be found or read.
    """
    config = model.config.get_text_config()
    modules = {
        module.layer_idx: module
        for module in model.modules()
        if getattr(module, "config", None) is config
        and isinstance(getattr(module, "layer_idx", None), int)
        and cached_call(type(module).forward) is not None
    }
    if missing := [layer for layer in layers if layer not in modules]:
        what = f"no attention module has layer_idx {missing[0]}"
        raise CacheError(what, where=type(model).__name__, hint="choose a selector that needs no output projection")
    return [Projection(modules[layer], heads, kv_heads) for layer in layers]
