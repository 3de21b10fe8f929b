"""Study: visual heads switched off against as many random heads, anywhere and in the same layers (paper, figure 7)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from sparsemm.evaluate.rows import Arm, Row
from sparsemm.params.studies import TasksParams
from sparsemm.studies import Rows, Study, StudyRow, spread, tally
from sparsemm.studies.common.heads import (
    LAYERS,
    NONE,
    RANDOM,
    TOP,
    Heads,
    Off,
    Zero,
    best_heads,
    heads_off,
    random_heads_in,
)

if TYPE_CHECKING:
    import torch

    from sparsemm.evaluate.answers import Batch, Reply
    from sparsemm.studies.common.experiment import Experiment


class MaskingParams(TasksParams):
    """How many heads are switched off, and how."""

    fractions: tuple[Annotated[float, Field(gt=0.0, le=1.0)], ...] = Field(min_length=1, description="of all heads")
    zero: tuple[Zero, ...] = Field(("output", "query"), min_length=1)
    seeds: int = Field(3, ge=1, description="random draws per page for each control")


Which = Callable[[list[int]], Off | None]  # heads that are off for the pages of these numbers


def against(arm: Arm) -> list[Arm]:
    """Compares visual heads with both controls, and every arm with the model whose heads are all on."""
    nothing = Arm(arm.task, "", NONE, 0.0)
    controls = [arm._replace(setting=RANDOM), arm._replace(setting=LAYERS)]
    return [*controls, nothing] if arm.setting == TOP else [nothing]


def headline(row: StudyRow) -> bool:
    """Tells whether a row compares the best heads with random ones, with their output set to zero."""
    return (row.condition, row.setting) == ("output zeroed", TOP) and row.against in (RANDOM, LAYERS)


def conclusion(rows: Rows) -> str:
    """Says how much more is lost without the best heads than without as many random ones."""
    compared = [row for row in rows if headline(row) and row.verdict]
    if not compared:
        return ""
    lost = tally(compared)["worse"]
    verdict = "most show no such loss" if 2 * lost < len(compared) else "the other half shows no such loss"
    if 2 * lost > len(compared):
        verdict = "the visual heads carry what the model reads"
    by = spread([row.diff for row in compared if row.diff is not None], "+")
    return (
        f"Without the best heads, accuracy is lower than without as many random heads in {lost} of {len(compared)} "
        f"comparisons (best heads off minus random heads off: {by}): {verdict}."
    )


def run(experiment: Experiment, options: MaskingParams) -> list[Row]:
    """Returns one row per task, kind of zero, fraction, kind of heads and comparison. The cache is full."""
    arms: dict[Arm, Any] = {}
    layers = experiment.scores.layers_with_heads()
    for task in options.tasks:
        arms[Arm(task, "", NONE, 0.0)] = _none
        for zero, fraction in product(options.zero, options.fractions):
            top, arm = best_heads(experiment.scores, fraction), Arm(task, f"{zero} zeroed", TOP, fraction)
            arms[arm] = partial(_the_same, top, zero)
            for kind in (RANDOM, LAYERS):
                at_random = partial(_at_random, top, zero, kind == LAYERS, layers)
                arms[arm._replace(setting=kind)] = [partial(at_random, seed) for seed in range(options.seeds)]
    return experiment.rows(experiment.measure(arms, without_heads), against)


def _none(pages: list[int]) -> None:
    return None


def _the_same(heads: Heads, zero: Zero, pages: list[int]) -> Off:
    return Off(heads, zero)


def _at_random(like: Heads, zero: Zero, same_layers: bool, layers: list[int], seed: int, pages: list[int]) -> Off:
    return Off(random_heads_in(layers, like, seed, same_layers, pages), zero)


def without_heads(model: Any, batch: Batch, variants: Mapping[str, Which], max_new_tokens: int) -> dict[str, Reply]:
    """Answers greedily with transformers' own cache, while the heads of every variant are switched off."""
    from sparsemm.evaluate.answers import Reply
    from sparsemm.processes import processes, share
    from sparsemm.prompts import move_inputs

    inputs = move_inputs(batch.inputs, model)
    off = {name: which(batch.index) for name, which in variants.items()}
    calls = [partial(heads_off, _plain, one, model, inputs, max_new_tokens) for one in off.values()]
    results = share(calls, processes(model))
    return {name: Reply(*result) for name, result in zip(off, results, strict=True)}


def _plain(model: Any, inputs: dict[str, torch.Tensor], max_new_tokens: int) -> Reply:
    from transformers import DynamicCache

    from sparsemm.compat import cache_argument
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
    "times, anew for every page. A head whose output is zero adds nothing; one whose query is zero attends to "
    "everything equally.",
    conclusion=conclusion,
    headline=headline,
    level="share of heads switched off",
    open=True,
)
