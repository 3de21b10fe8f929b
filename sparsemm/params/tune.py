"""The part `tune` of params.yaml: which methods the tune stage tries, and on how many pages."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from sparsemm.budgets import MOST_POWER
from sparsemm.errors import BudgetError
from sparsemm.params.stages import Method
from sparsemm.params.strict import Count, WithoutRepeats
from sparsemm.params.studies import Budgets, Share, no_questions
from sparsemm.policies import METHODS, SELECTORS, parts
from sparsemm.recipes import BASELINE, PUBLISHED, Scenario


def _check_policy(name: str) -> str:
    if parts(name)[1] is not None or name == "full":
        raise ValueError(f"{name!r} is no allocation; selectors are listed apart")
    return name


Allocation = Annotated[
    Method, AfterValidator(_check_policy), Field(json_schema_extra={"enum": [one for one in METHODS if one != "full"]})
]
Selector = Annotated[str, Field(json_schema_extra={"enum": list(SELECTORS)})]


Power = Annotated[float, Field(gt=0.0, le=MOST_POWER)]


class TuneParams(WithoutRepeats):
    """The search for a method: allocations x selectors x rho x power x window, on two thirds of the pages.

    The winner of each scenario is then measured on the last third, which the search never saw.
    """

    samples: int = Field(24, ge=3, description="evaluation pages: two thirds to search, the last third to prove")
    first: Count = Field(4, description="pages of the first round; then twice as many, half the candidates")
    scenarios: tuple[Scenario, ...] = Field(("known", "later"), min_length=1, description="when the question is known")
    tasks: tuple[Literal["read", "qa"], ...] = Field(("read", "qa"), min_length=1)
    budgets: Budgets
    methods: tuple[Allocation, ...] = Field(("snapkv", "adakv", "sparsemm"), min_length=1, description="allocations")
    selectors: tuple[Selector, ...] = Field(("snapkv", "peak", "blend-echo", "critical"), min_length=1)
    rhos: tuple[Share, ...] = Field((0.1, 0.4), min_length=1, description="for the allocations that have such a share")
    powers: tuple[Power, ...] = Field((1.0,), min_length=1, description="exponents of the head scores, in the same way")
    windows: tuple[Count, ...] = Field((), description="observation windows; default: the one of `allocate`")
    against: tuple[Method, ...] = Field(
        ("full", "sparsemm", "snapkv", "adakv", "random"), description="what the winner is compared with"
    )

    @field_validator("selectors")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            try:
                parts(f"{BASELINE}+{name}")
            except BudgetError as error:
                raise ValueError(str(error)) from error
        return value

    @model_validator(mode="after")
    def _compared(self) -> Self:
        for name in (BASELINE, PUBLISHED):
            if name not in self.against:
                raise ValueError(f"against: {name} is missing, and the gate asks for it")
        if list(self.budgets) != sorted(self.budgets):
            raise ValueError("budgets must increase")
        return self

    def problem(self, params: Any) -> str | None:
        """Returns what does not fit the other parts of params.yaml, or None."""
        window = max(self.windows or (params.allocate.window,))
        if min(self.budgets) < window:
            return f"budget {min(self.budgets)} is below the window of {window}"
        if self.samples > params.datasets[params.evaluate.dataset].samples:
            return "samples is more than the evaluation data set has"
        return no_questions(params) if "qa" in self.tasks else None
