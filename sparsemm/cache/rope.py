"""M-RoPE's offsets between tokens seen and positions: a model keeps only its last prompt's, every cache its own."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary

_KEPT = WeakTensorKeyDictionary()  # offsets that belong to a cache; a model's others are those of a prompt to come


class RopeDeltas:
    """The `rope_deltas` (B, 1) of one cache's tokens; nothing for models without them.

    Transformers writes them to the model at a prompt and reads them there at a later turn, when another prompt may
    have replaced them. So the cache takes them at its own tokens and puts them back when it is asked for its length,
    which comes before they are read.
    """

    def __init__(self, model: Any) -> None:
        owner = next((module for module in model.modules() if "rope_deltas" in vars(module)), None)
        self.owner = None if owner is None else weakref.ref(owner)
        self.reset()

    def reset(self) -> None:
        """Forget them, as before the first prompt."""
        self.deltas: torch.Tensor | None = None
        self.known = False

    def take(self, new: int) -> None:
        """Keep what the model wrote for this cache's next `new` tokens; a single later token changes nothing."""
        if self.owner is None or (self.known and new == 1):
            return
        written = getattr(self.owner(), "rope_deltas", None)
        if written is not None and written not in _KEPT:
            self.deltas = written
            _KEPT[written] = True
        self.known = True

    def put_back(self) -> None:
        """Give them to the model, unless it has just written others."""
        owner = None if self.owner is None or not self.known else self.owner()
        if owner is None or owner.rope_deltas is self.deltas:
            return
        if owner.rope_deltas is None or owner.rope_deltas in _KEPT:
            owner.rope_deltas = self.deltas
            if self.deltas is not None:
                _KEPT[self.deltas] = True

    def select_rows(self, index: torch.Tensor, batch: int) -> None:
        """Keep those of the batch rows `index` (N,) of `batch`, in that order."""
        if self.deltas is not None and len(self.deltas) == batch:
            self.deltas = self.deltas[index.to(self.deltas.device)]
            _KEPT[self.deltas] = True
