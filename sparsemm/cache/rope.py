"""M-RoPE's offsets between tokens seen and positions: one set per cache, as a model keeps only its last prompt's."""

from __future__ import annotations

import weakref
from contextlib import nullcontext
from typing import Any

import torch


class RopeDeltas:
    """The `rope_deltas` (B, 1) of one cache's tokens; does nothing for models without them.

    Transformers reads them from the model right after it asks the cache for its length, whichever call wrote them
    there. So the cache writes its own deltas to the model whenever it is asked. The deltas after a turn follow from the
    positions passed to its forward, or, if the model computes those itself, from what it writes to `rope_deltas`.
    """

    handle: Any = None  # of the hook on the forward that follows `get_seq_length`

    def __init__(self, model: Any) -> None:
        owner = next((module for module in model.modules() if "rope_deltas" in vars(module)), None)
        self.owner = None if owner is None else weakref.ref(owner)
        self.reset()

    def reset(self) -> None:
        """Drops the deltas, as before the first prompt."""
        self.release()
        self.deltas: torch.Tensor | None = None
        self.valid = False  # whether `deltas` hold for the tokens so far
        self.restored = False  # whether the model has them since the last forward
        self.noted = False  # whether the positions of the next forward were seen

    def put_back(self) -> None:
        """Writes the deltas to the model, which is about to read or replace them, and hooks its next forward."""
        owner = None if self.owner is None else self.owner()
        if owner is None:
            return
        owner.rope_deltas = self.deltas
        self.restored = True
        if self.handle is None:
            self.handle = owner.register_forward_pre_hook(Listener(self), with_kwargs=True)

    def note(self, seen: int, positions: torch.Tensor, mask: Any) -> None:
        """Computes the deltas from the positions of the T tokens of the next forward.

        Args:
            seen: tokens before them.
            positions: (B, T), or (axes, B, T) with M-RoPE's three axes last, which are equal for text tokens.
            mask: (B, seen + T), zero for padding; anything else counts as no mask.
        """
        self.noted = True
        if self.valid and positions.shape[-1] == 1:
            return
        following = positions.view(-1, *positions.shape[-2:])[-3:].amax(dim=(0, 2)) + 1
        if isinstance(mask, torch.Tensor) and mask.dim() == 2:
            self.deltas = (following - mask.sum(-1).to(following.device))[:, None]
        else:
            self.deltas = (following - seen - positions.shape[-1])[:, None]

    def take(self, new: int) -> None:
        """Takes over the deltas that the model wrote for the next `new` tokens, unless `note` computed them."""
        owner = None if self.owner is None else self.owner()
        if owner is None:
            return
        if self.noted:
            owner.rope_deltas = self.deltas
        elif self.restored and (new > 1 or not self.valid):
            self.deltas = owner.rope_deltas
        self.release()
        self.valid, self.restored, self.noted = True, False, False

    def release(self) -> None:
        """Removes the hook from the model."""
        if self.handle is not None:
            self.handle.remove()
            self.handle = None

    def __del__(self) -> None:
        self.release()

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"handle": None}  # a copy adds its own hook

    def select_rows(self, index: torch.Tensor, batch: int) -> None:
        """Keeps the deltas of the batch rows `index` (N,) of `batch`, in that order."""
        if self.deltas is not None and len(self.deltas) == batch:
            self.deltas = self.deltas[index.to(self.deltas.device)]


class Listener:
    """A forward hook that passes the positions of a cache's next forward to its `RopeDeltas`."""

    def __init__(self, rope: RopeDeltas) -> None:
        self.rope = weakref.ref(rope)

    def __call__(self, module: torch.nn.Module, args: Any, options: dict[str, Any]) -> None:
        rope, positions = self.rope(), options.get("position_ids")
        cache: Any = options.get("past_key_values", options.get("cache"))  # its name from transformers 5.24 on
        if cache is None or positions is None or getattr(cache, "rope", None) is not rope or rope is None:
            return
        rope.note(cache.ragged[0].seen, positions, options.get("attention_mask"))

    def __reduce__(self) -> Any:
        return getattr, (nullcontext(), "__exit__")  # in a pickled copy of the model it is a hook that does nothing
