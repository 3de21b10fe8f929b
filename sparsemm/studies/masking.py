"""Visual heads switched off against as many random heads, anywhere and in the same layers (paper, figure 7)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from sparsemm.attention_probe import AttentionCall, observe_attention
from sparsemm.errors import ModelError
from sparsemm.params.studies import MaskingParams
from sparsemm.policies.random_heads import draw
from sparsemm.scores import ScoreTable, top_count
from sparsemm.studies.answers import Batch, Reply, plain, replies
from sparsemm.studies.bench import Bench
from sparsemm.studies.declaration import Rows, Study, StudyRow, spread, tally
from sparsemm.studies.rows import Arm, Outcome, Row, over_seeds

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
        rows = self.heads if self.heads.ndim == 3 else self.heads[None]
        batch, heads = call.query.shape[:2]
        if call.layer >= rows.shape[1] or rows.shape[2] != heads or len(rows) not in (1, batch):
            what = f"heads {self.heads.shape} do not fit queries {tuple(call.query.shape)} of layer {call.layer}"
            raise ModelError(what, where="heads_off", hint="(layers, heads), or (batch, layers, heads)")
        off = torch.from_numpy(rows[:, call.layer]).to(call.query.device)  # (B or 1, Hq)
        if self.zero == "query":
            return call.attend(call.query.masked_fill(off[:, :, None, None], 0.0))
        return call.attend().masked_fill(off[:, None, :, None], 0.0)


Which = Callable[[list[int]], Off | None]  # heads that are off for the pages of these numbers


def heads_off(call: Callable[..., T], off: Off | None, model: Any, *arguments: Any) -> T:
    """`call(model, *arguments)` while these heads of the language model are off; what was set before is restored."""
    if off is None:
        return call(model, *arguments)
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
    return np.stack([drawn(like, draw(seed, page), same_layers) for page in pages])


def against(arm: Arm) -> list[Arm]:
    """The visual heads are compared with both controls, every arm with no head off."""
    nothing = Arm(arm.task, "", NONE, 0.0)
    controls = [arm._replace(setting=RANDOM), arm._replace(setting=LAYERS)]
    return [*controls, nothing] if arm.setting == TOP else [nothing]


def headline(row: StudyRow) -> bool:
    """The best heads against random ones, their output being zero."""
    return (row.condition, row.setting) == ("output zeroed", TOP) and row.against in (RANDOM, LAYERS)


def conclusion(rows: Rows) -> str:
    """How much more is lost without the best heads than without as many random ones."""
    mine = [row for row in rows if headline(row) and row.verdict]
    if not mine:
        return ""
    lost = tally(mine)["worse"]
    so = "the visual heads carry what the model reads" if 2 * lost > len(mine) else "most comparisons show no such loss"
    by = spread([row.diff for row in mine if row.diff is not None], "+")
    return (
        f"Without the best heads, accuracy is lower than without as many random heads in {lost} of {len(mine)} "
        f"comparisons (best heads off minus random heads off: {by}): {so}."
    )


STUDY = Study(
    title="Visual heads switched off",
    question="The best heads by score are switched off, and in comparison as many random heads, anywhere or in the "
    "same layers. Below zero, the model loses more without its visual heads. Random heads are drawn several "
    "times, anew for every page. A head whose output is zero adds nothing; one whose query is zero looks at "
    "everything alike.",
    conclusion=conclusion,
    headline=headline,
    level="share of heads switched off",
    open=True,
)


def run(bench: Bench, given: MaskingParams) -> list[Row]:
    """One row per task, kind of zero, fraction, kind of heads and comparison; the cache is full."""
    outcomes: dict[Arm, Outcome] = {}
    for task in given.tasks:
        outcomes[Arm(task, "", NONE, 0.0)] = _without(bench, f"{task}-none", task, {NONE: lambda _: None})[NONE]
        for zero in given.zero:
            layers = bench.scores.layers_with_heads()
            for fraction in given.fractions:
                top = chosen(bench.scores, fraction)
                off: dict[str, Which] = {TOP: partial(_the_same, top, zero)}
                for kind, seed in product((RANDOM, LAYERS), range(given.seeds)):
                    off[f"{kind}-{seed}"] = partial(_at_random, top, zero, seed, kind == LAYERS, layers)
                said = _without(bench, f"{task}-{zero}-{fraction}", task, off)
                for kind in (TOP, RANDOM, LAYERS):
                    mine = [outcome for way, outcome in said.items() if way.partition("-")[0] == kind]
                    outcomes[Arm(task, f"{zero} zeroed", kind, fraction)] = over_seeds(mine)
    return bench.rows(outcomes, against)


def _the_same(heads: Heads, zero: Zero, pages: list[int]) -> Off:
    return Off(heads, zero)


def _at_random(like: Heads, zero: Zero, seed: int, same_layers: bool, layers: list[int], pages: list[int]) -> Off:
    heads = np.zeros((len(pages), *like.shape), dtype=bool)
    heads[:, layers] = drawn_anew(like[layers], seed, same_layers, pages)
    return Off(heads, zero)


def _without(bench: Bench, unit: str, task: str, off: Mapping[str, Which]) -> dict[str, Outcome]:
    asked = bench.questions(task)

    def answer(model: Any, batch: Batch) -> dict[str, Reply]:
        most = bench.most(asked)
        ways = {name: partial(heads_off, plain, which(batch.index), model, batch, most) for name, which in off.items()}
        return replies(model, ways)

    return bench.ask(unit, task, asked, answer)
