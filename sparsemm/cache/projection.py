"""The output projection of an attention layer, for selectors that ask what a value adds to the residual stream."""

from __future__ import annotations

import weakref
from typing import Any

import torch

from sparsemm.cache.features import cached_call
from sparsemm.errors import CacheError

NAMES = ("o_proj", "out_proj", "dense", "wo")  # what transformers' attention layers call it


class Projection:
    """The output projection of one layer; the model stays its only owner, also where a cache is copied.

    Args:
        module: the attention layer.
        heads, kv_heads: query and KV heads of it.

    Raises:
        CacheError: if the layer has none, or its weights are packed (8 or 4 bits) and cannot be read as a matrix.
    """

    def __init__(self, module: torch.nn.Module, heads: int, kv_heads: int) -> None:
        self.module, self.heads, self.kv_heads = weakref.ref(module), heads, kv_heads
        self.where = type(module).__name__
        self._weight()

    def _weight(self) -> torch.Tensor:
        module = self.module()
        linear = next((one for name in NAMES if (one := getattr(module, name, None)) is not None), None)
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
        """(Hkv, G, D, M), a view: what each query head's output is multiplied with.

        Raises:
            CacheError: if the weights are elsewhere (offloaded) while the layer runs.
        """
        weight = self._weight()
        if weight.is_meta:
            hint = "choose a selector that needs none, or leave the layer on its device"
            raise CacheError("the weights of the output projection are offloaded", where=self.where, hint=hint)
        return weight.unflatten(1, (self.kv_heads, self.heads // self.kv_heads, -1)).permute(1, 2, 3, 0)


def projections(model: Any, layers: tuple[int, ...], heads: int, kv_heads: int) -> list[Projection]:
    """The output projections of a model's layers of these numbers.

    Raises:
        CacheError: if one cannot be found or read.
    """
    config = model.config.get_text_config()
    found = {
        module.layer_idx: module
        for module in model.modules()
        if getattr(module, "config", None) is config
        and isinstance(getattr(module, "layer_idx", None), int)
        and cached_call(type(module).forward) is not None
    }
    if missing := [layer for layer in layers if layer not in found]:
        what = f"the attention of layer {missing[0]} is not found by its number"
        raise CacheError(what, where=type(model).__name__, hint="choose a selector that needs no output projection")
    return [Projection(found[layer], heads, kv_heads) for layer in layers]
