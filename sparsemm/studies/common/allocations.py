"""Allocations that are compared with the paper's, and how a set of them is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from pydantic import Field, model_validator

from sparsemm.budgets import Scores
from sparsemm.evaluate.rows import AREA, OVERALL, PAPER, Arm, Outcome
from sparsemm.params.strict import Count
from sparsemm.params.studies import BudgetsParams
from sparsemm.scores import ScoreTable
from sparsemm.statistics import area
from sparsemm.weights import group_max, layer_floor, power

if TYPE_CHECKING:
    from sparsemm.evaluate.answers import Variant
    from sparsemm.studies.common.experiment import Experiment

Way = tuple[str, int | None]  # setting, budget


class SearchParams(BudgetsParams):
    """The pages of the search; the last ones are held out."""

    held_out: Count = Field(description="number of last pages that the search does not use")

    @model_validator(mode="after")
    def _some_are_left(self) -> Self:
        if self.held_out >= self.samples:
            raise ValueError("nothing is left to search on")
        return self


@dataclass(frozen=True)
class Candidate:
    """The steps from scores s[l,h] of query heads to slots of KV heads, in their order. The defaults are the paper's.

    Attributes:
        group: "sum" or "max": s[l,g] = sum or max of s[l,h] over the query group g.
        exponent: a, s <- s ** a.
        floor: f, s <- (1 - f) s / sum(s) + f s / (L sum(s[l])); no layer gets less than f of an even share.
        rho: share of the slots beyond the window that is split evenly; None for that of `allocate`.
        adapt: share of a layer's split that follows the prompt's attention; None for a split that ignores it.
        margin: whether hits are weighted by margin (`common/margin.py`); else s is the model's score table.
        mode: "exact", where what a head cannot use flows to the others, or "paper", where it is lost.
    """

    group: str = "sum"
    exponent: float = 1.0
    floor: float = 0.0
    rho: float | None = None
    adapt: float | None = None
    margin: bool = False
    mode: str = "exact"

    @property
    def method(self) -> str:
        """Returns the name in `sparsemm.policies.METHODS`."""
        return "sparsemm" if self.adapt is None else "sparsemm-adaptive"

    def weights(self, table: ScoreTable) -> Scores:
        """Returns (L, Hkv) float64 for the layers with full attention: `scores` of `sparsemm.compressed_cache`."""
        kv = table.header["num_kv_heads"]
        grouped = group_max(table.scores, kv) if self.group == "max" else table.to_kv(kv)
        weights = power(grouped[table.full_layers()], self.exponent)
        return layer_floor(weights, self.floor) if self.floor else weights

    def options(self) -> dict[str, Any]:
        """Returns the options of `sparsemm.compressed_cache` that differ from the defaults."""
        chosen = {"rho": self.rho, "adapt": self.adapt}
        return {"mode": self.mode} | {name: value for name, value in chosen.items() if value is not None}


# Of equally good candidates the search takes the first.
CANDIDATES: Mapping[str, Candidate] = MappingProxyType(
    {
        PAPER: Candidate(),
        "overflow lost": Candidate(mode="paper"),
        "exponent 0.5": Candidate(exponent=0.5),
        "exponent 0.75": Candidate(exponent=0.75),
        "exponent 1.5": Candidate(exponent=1.5),
        "group max": Candidate(group="max"),
        "margin": Candidate(margin=True),
        "floor 0.5": Candidate(floor=0.5),
        "rho 0.2": Candidate(rho=0.2),
        "rho 0.4": Candidate(rho=0.4),
        "rho 0.6": Candidate(rho=0.6),
        "rho 0.8": Candidate(rho=0.8),
        "adapt 0.25": Candidate(adapt=0.25),
        "adapt 0.5": Candidate(adapt=0.5),
        "adapt 0.75": Candidate(adapt=0.75),
        "adapt 1": Candidate(adapt=1.0),
        "floor 0.5, adapt 0.5": Candidate(floor=0.5, adapt=0.5),
        "rho 0.4, exponent 0.5": Candidate(rho=0.4, exponent=0.5),
        "rho 0.4, group max": Candidate(rho=0.4, group="max"),
        "rho 0.6, group max": Candidate(rho=0.6, group="max"),
        "rho 0.4, adapt 0.25": Candidate(rho=0.4, adapt=0.25),
        "rho 0.6, adapt 0.25": Candidate(rho=0.6, adapt=0.25),
    }
)


def split(options: SearchParams) -> tuple[slice, slice]:
    """Returns the pages of the search, and the held-out pages, which are the last ones."""
    first_held_out = options.samples - options.held_out
    return slice(0, first_held_out), slice(first_held_out, options.samples)


def candidate(experiment: Experiment, name: str, budget: int) -> Variant:
    """Returns a cache with the allocation of that name."""
    from sparsemm.studies.common.margin import margin_table

    one = CANDIDATES[name]
    table = margin_table(experiment) if one.margin else experiment.scores
    return experiment.variant(one.method, budget, one.weights(table), **one.options())


def measure(
    experiment: Experiment, options: SearchParams, pages: slice, variants: Mapping[Way, Variant]
) -> dict[Arm, Outcome]:
    """Returns the outcomes of every (setting, budget), their areas, and the mean of the areas over tasks."""
    arms = {Arm(task, "", setting, None, b): one for task in options.tasks for (setting, b), one in variants.items()}
    measured, outcomes = experiment.measure(arms, pages=pages), dict[Arm, Outcome]()
    settings = list(dict.fromkeys(setting for setting, _ in variants))
    for task in options.tasks:
        outcomes |= {arm: one for arm, one in measured.items() if arm.task == task}
        for setting in settings:
            curve = {arm.budget: one for arm, one in measured.items() if (arm.task, arm.setting) == (task, setting)}
            values = curve[None].values if None in curve else _area(curve)
            outcomes[Arm(task, AREA, setting)] = Outcome(values, next(iter(curve.values())).metric)
    for setting in settings:
        tasks = np.stack([outcomes[Arm(task, AREA, setting)].values for task in options.tasks])
        outcomes[Arm(OVERALL, AREA, setting)] = Outcome(tasks.mean(axis=0), "mean over tasks")
    return outcomes


def _area(curve: Mapping[int | None, Outcome]) -> np.ndarray:
    budgets = sorted(b for b in curve if b is not None)
    return area(np.stack([curve[b].values for b in budgets]), budgets)
