"""M-RoPE's offsets between tokens seen and positions: a model keeps only its last prompt's, every cache its own."""

from __future__ import annotations

import weakref
from contextlib import nullcontext
from typing import Any

import torch


class RopeDeltas:
    """The `rope_deltas` (B, 1) of one cache's tokens; nothing for models without them.

    Transformers reads them from the model right after it asked the cache for its length, whatever other call has
    written them there. So the cache puts its own there whenever it is asked. What comes of a turn is known from the
    positions its forward is given, or, if that works them out itself, from what it writes to the model.
    """

    handle: Any = None  # of the hook that waits for the forward after such a question

    def __init__(self, model: Any) -> None:
        owner = next((module for module in model.modules() if "rope_deltas" in vars(module)), None)
        self.owner = None if owner is None else weakref.ref(owner)
        self.reset()

    def reset(self) -> None:
        """Forget them, as before the first prompt."""
        self.release()
        self.deltas: torch.Tensor | None = None
        self.known = False
        self.asked = self.noted = False

    def put_back(self) -> None:
        """Give them to the model, which is about to read or replace them, and wait for its forward."""
        owner = None if self.owner is None else self.owner()
        if owner is None:
            return
        owner.rope_deltas = self.deltas
        self.asked = True
        if self.handle is None:
            self.handle = owner.register_forward_pre_hook(Listener(self), with_kwargs=True)

    def note(self, seen: int, positions: torch.Tensor, mask: Any) -> None:
        """Learn them from the positions of the tokens to come.

        Args:
            seen: tokens before them.
            positions: (B, T), or (axes, B, T) with the three of M-RoPE last; a text token has the same on these three.
            mask: (B, seen + T), zero for padding; of another shape if there is none.
        """
        self.noted = True
        if self.known and positions.shape[-1] == 1:
            return
        next_ones = positions.view(-1, *positions.shape[-2:])[-3:].amax(dim=(0, 2)) + 1
        if isinstance(mask, torch.Tensor) and mask.dim() == 2:
            self.deltas = (next_ones - mask.sum(-1).to(next_ones.device))[:, None]
        else:
            self.deltas = (next_ones - seen - positions.shape[-1])[:, None]

    def take(self, new: int) -> None:
        """Keep what the model wrote for this cache's next `new` tokens, unless their positions were known."""
        owner = None if self.owner is None else self.owner()
        if owner is None:
            return
        if self.noted:
            owner.rope_deltas = self.deltas
        elif self.asked and (new > 1 or not self.known):
            self.deltas = owner.rope_deltas
        self.release()
        self.known, self.asked, self.noted = True, False, False

    def release(self) -> None:
        """Leave no hook on the model."""
        if self.handle is not None:
            self.handle.remove()
            self.handle = None

    def __del__(self) -> None:
        self.release()

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"handle": None}  # a copy waits for forwards of its own

    def select_rows(self, index: torch.Tensor, batch: int) -> None:
        """Keep those of the batch rows `index` (N,) of `batch`, in that order."""
        if self.deltas is not None and len(self.deltas) == batch:
            self.deltas = self.deltas[index.to(self.deltas.device)]


class Listener:
    """Tells a cache's `RopeDeltas` the positions of its next forward; a stored copy of the model has none."""

    def __init__(self, rope: RopeDeltas) -> None:
        self.rope = weakref.ref(rope)

    def __call__(self, module: torch.nn.Module, args: Any, options: dict[str, Any]) -> None:
        rope, positions = self.rope(), options.get("position_ids")
        cache: Any = options.get("past_key_values", options.get("cache"))  # its name from transformers 5.24 on
        if cache is None or positions is None or getattr(cache, "rope", None) is not rope or rope is None:
            return
        rope.note(cache.ragged[0].seen, positions, options.get("attention_mask"))

    def __reduce__(self) -> Any:
        return getattr, (nullcontext(), "__exit__")  # called as a hook, it does nothing
