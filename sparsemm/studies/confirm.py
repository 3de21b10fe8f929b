"""One candidate of the search, on the pages it never asked about: against the paper's allocation and other methods."""

from __future__ import annotations

from sparsemm.errors import ParamsError
from sparsemm.params.studies import ConfirmParams
from sparsemm.policies import budgets_of, policy_class
from sparsemm.studies.answers import Kept
from sparsemm.studies.bench import Bench
from sparsemm.studies.candidates import CANDIDATES
from sparsemm.studies.names import PAPER
from sparsemm.studies.rows import Row
from sparsemm.studies.search import Way, candidate, measure, split


def run(bench: Bench, given: ConfirmParams) -> list[Row]:
    """One row per task, setting and budget and per area; the candidate is held against all others.

    Raises:
        ParamsError: if there is no such candidate, or it does not keep as many slots as the paper's allocation.
    """
    chosen = given.candidate
    if chosen not in CANDIDATES or CANDIDATES[chosen].mode != "exact":
        known = ", ".join(name for name, one in CANDIDATES.items() if one.mode == "exact")
        where = "params.yaml: studies.confirmed.confirm.candidate"
        raise ParamsError(f"{chosen!r} cannot be confirmed", where=where, hint=f"one of: {known}")
    ways: dict[Way, Kept] = {
        (name, budget): candidate(bench, name, budget)
        for name in dict.fromkeys((chosen, PAPER))
        for budget in given.budgets
    }
    for method in given.methods:
        ways |= {(method, budget): bench.kept(method, budget) for budget in budgets_of(method, given.budgets)}
    outcomes = measure(bench, given, f"-{chosen}", split(given)[1], ways)
    others = [PAPER, *given.methods]
    return bench.rows(
        outcomes,
        lambda arm: (
            [arm._replace(setting=o, budget=arm.budget if policy_class(o).compresses else None) for o in others]
            if arm.setting == chosen
            else []
        ),
    )
