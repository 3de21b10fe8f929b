"""Visual heads switched off against as many random heads, anywhere and in the same layers (paper, figure 7)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsemm.params.studies import MaskingParams
from sparsemm.scores import ScoreTable, top_count
from sparsemm.studies.answers import Batch, Reply, plain
from sparsemm.studies.bench import Bench
from sparsemm.studies.heads_off import Off, heads_off
from sparsemm.studies.rows import Arm, Outcome, Row, over_seeds

Heads = NDArray[np.bool_]
TOP, RANDOM, LAYERS, NONE = "top", "random", "random, same layers", "none"


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


def _draws(table: ScoreTable, fraction: float, seeds: int) -> Iterator[tuple[str, int, Heads]]:
    top = chosen(table, fraction)
    yield TOP, 0, top
    for seed in range(seeds):
        yield RANDOM, seed, drawn(top, seed, same_layers=False)
        yield LAYERS, seed, drawn(top, seed, same_layers=True)


def against(arm: Arm) -> list[Arm]:
    """The visual heads are compared with both controls, every arm with no head off."""
    nothing = Arm(arm.task, "", NONE, 0.0)
    controls = [arm._replace(setting=RANDOM), arm._replace(setting=LAYERS)]
    return [*controls, nothing] if arm.setting == TOP else [nothing]


def run(bench: Bench, given: MaskingParams) -> list[Row]:
    """One row per task, kind of zero, fraction, kind of heads and comparison; the cache is full."""
    outcomes: dict[Arm, Outcome] = {}
    for task in given.tasks:
        outcomes[Arm(task, "", NONE, 0.0)] = _without(bench, f"{task}-none", task, {NONE: None})[NONE]
        for zero in given.zero:
            for fraction in given.fractions:
                draws = list(_draws(bench.scores, fraction, given.seeds))
                off = {f"{kind}-{seed}": Off(heads, zero) for kind, seed, heads in draws}
                said = _without(bench, f"{task}-{zero}-{fraction}", task, off)
                for kind in (TOP, RANDOM, LAYERS):
                    mine = [said[f"{other}-{seed}"] for other, seed, _ in draws if other == kind]
                    outcomes[Arm(task, f"{zero} zeroed", kind, fraction)] = over_seeds(mine)
    return bench.rows(outcomes, against)


def _without(bench: Bench, unit: str, task: str, off: Mapping[str, Off | None]) -> dict[str, Outcome]:
    asked = bench.questions(task)

    def answer(model: Any, batch: Batch) -> dict[str, Reply]:
        return {name: heads_off(plain, heads, model, batch, bench.most(asked)) for name, heads in off.items()}

    return bench.ask(unit, task, asked, answer)
