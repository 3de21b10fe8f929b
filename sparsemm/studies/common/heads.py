"""Heads of a language model that are switched off: which ones, and how."""

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
    """Heads that are off, as an observer of attention.

    Attributes:
        heads: (L, Hq) bool, or (B, L, Hq) for heads of each row's own.
        zero: "output": the head adds nothing to the residual stream. "query": its logits are all zero, so that it
            looks at everything alike.
    """

    heads: Heads
    zero: Zero

    def __call__(self, call: AttentionCall) -> torch.Tensor:
        """What the heads of one layer put out, (B, T, Hq, D), some of them being off.

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
    """`call(model, *arguments)` while these heads of the language model are off; what was set before is restored."""
    if off is None:
        return call(model, *arguments)
    from sparsemm.attention_probe import observe_attention

    with observe_attention(model, off):
        return call(model, *arguments)


def chosen(table: ScoreTable, fraction: float) -> Heads:
    """(L, Hq) bool: the best `fraction` of the heads, rounded half up, at least one."""
    result = np.zeros(table.scores.shape, dtype=bool)
    for layer, head, _ in table.top_heads(top_count(result.size, fraction)):
        result[layer, head] = True
    return result


def drawn(like: Heads, seed: int, same_layers: bool) -> Heads:
    """As many heads as `like` has, at random; with `same_layers` as many in every layer."""
    rng = np.random.default_rng(seed)
    result = np.zeros_like(like)
    if not same_layers:
        result.ravel()[rng.permutation(like.size)[: int(like.sum())]] = True
        return result
    for row, count in zip(result, like.sum(axis=1), strict=True):
        row[rng.permutation(len(row))[:count]] = True
    return result


def drawn_anew(like: Heads, seed: int, same_layers: bool, pages: list[int]) -> Heads:
    """(B, L, Hq) bool: `drawn` for every page, so that resampling pages resamples draws too."""
    from sparsemm.policies.random_heads import draw

    return np.stack([drawn(like, draw(seed, page), same_layers) for page in pages])


def drawn_in(layers: list[int], like: Heads, seed: int, same_layers: bool, pages: list[int]) -> Heads:
    """(B, L, Hq) bool: `drawn_anew` among the heads of these layers alone, those with attention."""
    heads = np.zeros((len(pages), *like.shape), dtype=bool)
    heads[:, layers] = drawn_anew(like[layers], seed, same_layers, pages)
    return heads
