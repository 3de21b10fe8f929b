"""Switches heads of a language model off: which ones, and how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from sparsemm.errors import ModelError
from sparsemm.scores import ScoreTable, top_count

if TYPE_CHECKING:
    import torch

    from sparsemm.attention_probe import AttentionCall

Heads = NDArray[np.bool_]
Zero = Literal["output", "query"]
T = TypeVar("T")
TOP, RANDOM, LAYERS, NONE = "top", "random", "random, same layers", "none"


@dataclass(frozen=True, eq=False)
class Off:
    """An observer of attention that switches heads off.

    Attributes:
        heads: (L, Hq) bool, or (B, L, Hq) if every row has its own heads.
        zero: with "output" a head adds nothing to the residual stream. With "query" its logits are all zero, so that
            it attends to everything equally.
    """

    heads: Heads
    zero: Zero

    def __call__(self, call: AttentionCall) -> torch.Tensor:
        """Returns the output of one layer's heads, (B, T, Hq, D), with some of them switched off.

        Raises:
            ModelError: if the heads are not this model's.
        """
        import torch

        rows = self.heads if self.heads.ndim == 3 else self.heads[None]
        batch, heads = call.query.shape[:2]
        if call.layer >= rows.shape[1] or rows.shape[2] != heads or len(rows) not in (1, batch):
            what = f"heads {self.heads.shape} do not fit queries {tuple(call.query.shape)} of layer {call.layer}"
            raise ModelError(what, where="heads_off", hint="(layers, heads), or (batch, layers, heads)")
        off = torch.from_numpy(rows[:, call.layer]).to(call.query.device)  # (B or 1, Hq)
        if self.zero == "query":
            return call.attend(call.query.masked_fill(off[:, :, None, None], 0.0))
        return call.attend().masked_fill(off[:, None, :, None], 0.0)


def heads_off(call: Callable[..., T], off: Off | None, model: Any, *arguments: Any) -> T:
    """Returns `call(model, *arguments)`, made while these heads of the language model are switched off."""
    if off is None:
        return call(model, *arguments)
    from sparsemm.attention_probe import observe_attention

    with observe_attention(model, off):
        return call(model, *arguments)


def best_heads(table: ScoreTable, fraction: float) -> Heads:
    """Returns (L, Hq) bool, true for the best `fraction` of the heads, rounded half up, at least one."""
    result = np.zeros(table.scores.shape, dtype=bool)
    for layer, head, _ in table.top_heads(top_count(result.size, fraction)):
        result[layer, head] = True
    return result


def random_heads(like: Heads, seed: int, same_layers: bool) -> Heads:
    """Draws as many heads as `like` has; with `same_layers`, as many in every layer."""
    rng = np.random.default_rng(seed)
    result = np.zeros_like(like)
    if not same_layers:
        result.ravel()[rng.permutation(like.size)[: int(like.sum())]] = True
        return result
    for row, count in zip(result, like.sum(axis=1), strict=True):
        row[rng.permutation(len(row))[:count]] = True
    return result


def random_heads_by_page(like: Heads, seed: int, same_layers: bool, pages: list[int]) -> Heads:
    """Returns (B, L, Hq) bool, a draw for every page, so that resampling pages resamples draws too."""
    from sparsemm.policies.random_heads import draw

    return np.stack([random_heads(like, draw(seed, page), same_layers) for page in pages])


def random_heads_in(layers: list[int], like: Heads, seed: int, same_layers: bool, pages: list[int]) -> Heads:
    """Returns `random_heads_by_page`, (B, L, Hq) bool, among the heads of these layers alone."""
    heads = np.zeros((len(pages), *like.shape), dtype=bool)
    heads[:, layers] = random_heads_by_page(like[layers], seed, same_layers, pages)
    return heads
