"""Allocations that are tried against the paper's, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from sparsemm.budgets import Scores
from sparsemm.scores import ScoreTable
from sparsemm.studies.names import PAPER
from sparsemm.weights import group_max, layer_floor, power


@dataclass(frozen=True)
class Candidate:
    """From scores s[l,h] of query heads to slots of KV heads, in this order; the defaults are the paper's.

    Attributes:
        group: "sum" or "max": s[l,g] = sum or max of s[l,h] over the query group g.
        exponent: a, s <- s ** a.
        floor: f, s <- (1 - f) s / sum(s) + f s / (L sum(s[l])); no layer gets less than f of an even share.
        rho: share of the slots beyond the window that is split evenly; None for that of `allocate`.
        adapt: share of a layer's split that follows the prompt's attention; None for a split that ignores it.
        margin: whether hits are weighted by margin (`sparsemm.studies.margin`); else s is the model's score table.
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
        """Of `sparsemm.policies.METHODS`."""
        return "sparsemm" if self.adapt is None else "sparsemm-adaptive"

    def weights(self, table: ScoreTable) -> Scores:
        """(L, Hkv) float64 of the layers with full attention: `scores` of `sparsemm.compressed_cache`."""
        kv = table.header["num_kv_heads"]
        grouped = group_max(table.scores, kv) if self.group == "max" else table.to_kv(kv)
        weights = power(grouped[table.full_layers()], self.exponent)
        return layer_floor(weights, self.floor) if self.floor else weights

    def options(self) -> dict[str, Any]:
        """Options of `sparsemm.compressed_cache` that are not as usual."""
        chosen = {"rho": self.rho, "adapt": self.adapt}
        return {"mode": self.mode} | {name: value for name, value in chosen.items() if value is not None}


# Ties in the search go to the first.
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
