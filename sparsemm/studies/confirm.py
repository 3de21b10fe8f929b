"""Study: a candidate of the search on held-out pages, against the paper's allocation and other methods."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from sparsemm.errors import DataError, ParamsError
from sparsemm.evaluate.rows import AREA, OVERALL, PAPER, Row
from sparsemm.params.studies import Methods
from sparsemm.policies import budgets_of, policy_class
from sparsemm.studies import Rows, Study, spread
from sparsemm.studies.common.allocations import CANDIDATES, SearchParams, Way, candidate, measure, split

if TYPE_CHECKING:
    from sparsemm.evaluate.answers import Variant
    from sparsemm.params import Params
    from sparsemm.studies.common.experiment import Experiment


class ConfirmParams(SearchParams):
    """The candidate, and the methods that it is compared with."""

    candidate: str = Field(description="name of the candidate; the report says which is best by the searches")
    methods: Methods = Field(("snapkv", "adakv", "full"), description="methods to compare it with, besides sparsemm")

    def problem(self, params: Params) -> str | None:
        """Returns what does not fit the other parts of params.yaml, or None."""
        search = params.studies.enabled().get("search")
        shared = SearchParams.model_fields.keys() - {"precision"}
        if search is None or any(getattr(self, name) != getattr(search, name) for name in shared):
            return f"{', '.join(sorted(shared))} are not those of search"
        return super().problem(params)


def conclusion(rows: Rows) -> str:
    """Says what the candidate gains over the paper's allocation on held-out pages, and whether the gain holds.

    A gain holds if the interval of the paired difference of the overall area is above zero. Tasks on which the
    candidate is worse are named too, because a mean hides them.

    Raises:
        DataError: if the rows of the models are of different candidates.
    """
    areas = [row for row in rows if row.condition == AREA and row.verdict]
    candidates = {row.setting for row in areas}
    if not candidates:
        return ""
    if len(candidates) > 1:
        what = f"different candidates: {', '.join(sorted(candidates))}"
        raise DataError(what, where="artifacts/studies/confirm", hint="run its stages again")
    (chosen,) = candidates
    if chosen == PAPER:
        return "The candidate is the paper's own allocation: there is nothing to gain."
    gains = [row for row in areas if row.against == PAPER]
    overall = [row for row in gains if row.task == OVERALL]
    held = [row for row in overall if row.verdict == "better"]
    worse = [f"{row.model}, {row.task}" for row in gains if row.task != OVERALL and row.verdict == "worse"]
    asked = len({row.model for row in rows})
    so = (
        f"{chosen} may become the default"
        if held and len(held) == asked
        else "the paper's allocation stays the default"
    )
    by = f" ({spread([row.diff for row in overall if row.diff is not None], '+')})" if overall else ""
    but = f" For single tasks it is worse: {'; '.join(worse)}." if worse else ""
    return (
        f"On the held-out pages the gain of {chosen} over {PAPER}, as a mean over tasks{by}, holds on {len(held)} of "
        f"{asked} models: {so}.{but}"
    )


def run(experiment: Experiment, options: ConfirmParams) -> list[Row]:
    """Returns one row per task, setting and budget, and per area. The candidate is compared with all others.

    Raises:
        ParamsError: if there is no such candidate, or it does not keep as many slots as the paper's allocation.
    """
    chosen = options.candidate
    if chosen not in CANDIDATES or CANDIDATES[chosen].mode != "exact":
        known = ", ".join(name for name, one in CANDIDATES.items() if one.mode == "exact")
        where = "params.yaml: studies.measured.confirm.candidate"
        raise ParamsError(f"{chosen!r} cannot be confirmed", where=where, hint=f"one of: {known}")
    variants: dict[Way, Variant] = {
        (name, budget): candidate(experiment, name, budget)
        for name in dict.fromkeys((chosen, PAPER))
        for budget in options.budgets
    }
    for method in options.methods:
        variants |= {
            (method, budget): experiment.variant(method, budget) for budget in budgets_of(method, options.budgets)
        }
    outcomes = measure(experiment, options, split(options)[1], variants)
    others = [PAPER, *options.methods]
    return experiment.rows(
        outcomes,
        lambda arm: (
            [arm._replace(setting=o, budget=arm.budget if policy_class(o).compresses else None) for o in others]
            if arm.setting == chosen
            else []
        ),
    )


STUDY = Study(
    params=ConfirmParams,
    run=run,
    title="A candidate of the search, on held-out pages",
    question="One candidate, named in params.yaml, is asked about the held-out pages. The search says which is best.",
    conclusion=conclusion,
    headline=lambda row: row.task == OVERALL and row.condition == AREA,
)
