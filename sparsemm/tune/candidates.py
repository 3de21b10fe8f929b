"""The candidates of a search, and the rounds in which it halves them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

from sparsemm.params.tune import TuneParams
from sparsemm.policies import method_options, selector_of

OPTIONS = ("window", "rho", "power")  # options that a search varies


@dataclass(frozen=True)
class Candidate:
    """A method with the options that a search gives it.

    Attributes:
        name: the method, and those of its options that are not as usual: "sparsemm+peak, rho 0.4".
        method: name of the method, such as "sparsemm+peak".
        options: values of `OPTIONS`, of those that the method has.
    """

    name: str
    method: str
    options: Mapping[str, Any]


class Round(NamedTuple):
    """One round of a search: how many candidates it asks, and the pages from `start` to `stop` that are new in it."""

    candidates: int
    start: int
    stop: int


def make_candidate(method: str, options: Mapping[str, Any], usual: Mapping[str, Any]) -> Candidate:
    """Returns a candidate that is named after what is not `usual`; options that the method lacks are left out."""
    own = {name: options[name] for name in OPTIONS if name in method_options(method)}
    unusual = [f"{name} {value:g}" for name, value in own.items() if value != usual[name]]
    return Candidate(", ".join([method, *unusual]), method, own)


def make_candidates(options: TuneParams, usual: Mapping[str, Any]) -> list[Candidate]:
    """Returns every combination of params once, in their order; a policy's own selector is not named.

    Args:
        options: the part `tune` of params.yaml.
        usual: values of `OPTIONS` where params say nothing, those of `allocate`.
    """
    candidates: dict[str, Candidate] = {}
    windows = options.windows or (usual["window"],)
    values = product(options.methods, options.selectors, options.rhos, options.powers, windows)
    for policy, selector, rho, power, window in values:
        method = f"{policy}+{selector}"
        method = policy if selector_of(method) == selector_of(policy) else method
        one = make_candidate(method, {"rho": rho, "power": power, "window": window}, usual)
        candidates.setdefault(one.name, one)
    return list(candidates.values())


def plan_rounds(candidates: int, pages: int, first: int) -> list[Round]:
    """Returns the rounds of successive halving (Jamieson and Talwalkar, 2016).

    Every round doubles the pages, and half of the candidates go on. The last round
    is the one that reaches all pages, or after which one candidate is left.
    """
    rounds: list[Round] = []
    stop = 0
    while stop < pages and (candidates > 1 or not rounds):
        start, stop = stop, min(pages, 2 * stop or first)
        rounds.append(Round(candidates, start, stop))
        candidates = -(-candidates // 2)
    return rounds
