"""Visual heads switched off against as many random heads, anywhere and in the same layers (paper, figure 7)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from sparsemm.compat import cache_argument
from sparsemm.evaluate.rows import Arm, Row
from sparsemm.params.studies import TasksParams
from sparsemm.studies import Rows, Study, StudyRow, spread, tally
from sparsemm.studies.common.heads import LAYERS, NONE, RANDOM, TOP, Heads, Off, Zero, chosen, drawn_in, heads_off

if TYPE_CHECKING:
    import torch

    from sparsemm.evaluate.answers import Batch, Reply
    from sparsemm.studies.common.bench import Bench


class MaskingParams(TasksParams):
    """Heads switched off, by score and by chance."""

    fractions: tuple[Annotated[float, Field(gt=0.0, le=1.0)], ...] = Field(min_length=1, description="of all heads")
    zero: tuple[Zero, ...] = Field(("output", "query"), min_length=1)
    seeds: int = Field(3, ge=1, description="random draws for every page behind each control")


Which = Callable[[list[int]], Off | None]  # heads that are off for the pages of these numbers


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


def run(bench: Bench, given: MaskingParams) -> list[Row]:
    """One row per task, kind of zero, fraction, kind of heads and comparison; the cache is full."""
    ways: dict[Arm, Any] = {}
    layers = bench.scores.layers_with_heads()
    for task in given.tasks:
        ways[Arm(task, "", NONE, 0.0)] = _none
        for zero, fraction in product(given.zero, given.fractions):
            top, arm = chosen(bench.scores, fraction), Arm(task, f"{zero} zeroed", TOP, fraction)
            ways[arm] = partial(_the_same, top, zero)
            for kind in (RANDOM, LAYERS):
                at_random = partial(_at_random, top, zero, kind == LAYERS, layers)
                ways[arm._replace(setting=kind)] = [partial(at_random, seed) for seed in range(given.seeds)]
    return bench.rows(bench.measure(ways, without_heads), against)


def _none(pages: list[int]) -> None:
    return None


def _the_same(heads: Heads, zero: Zero, pages: list[int]) -> Off:
    return Off(heads, zero)


def _at_random(like: Heads, zero: Zero, same_layers: bool, layers: list[int], seed: int, pages: list[int]) -> Off:
    return Off(drawn_in(layers, like, seed, same_layers, pages), zero)


def without_heads(model: Any, batch: Batch, ways: Mapping[str, Which], max_new_tokens: int) -> dict[str, Reply]:
    """Greedy answers with transformers' own cache, while the heads of every way are off."""
    from sparsemm.evaluate.answers import placed, replies

    inputs = placed(model, batch.inputs)
    off = {name: which(batch.index) for name, which in ways.items()}
    return replies(
        model, {name: partial(heads_off, _plain, one, model, inputs, max_new_tokens) for name, one in off.items()}
    )


def _plain(model: Any, inputs: dict[str, torch.Tensor], max_new_tokens: int) -> Reply:
    from transformers import DynamicCache

    from sparsemm.evaluate.answers import Reply

    out = model.generate(
        **inputs, **cache_argument(DynamicCache()), do_sample=False, use_cache=True, max_new_tokens=max_new_tokens
    )
    return Reply(out[:, inputs["input_ids"].shape[1] :].tolist())


STUDY = Study(
    params=MaskingParams,
    run=run,
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
