"""The part `studies` of params.yaml: an optional entry per file of `sparsemm/studies`, which declares its options."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Annotated, Any, Literal

from pydantic import Field, create_model, field_validator

from sparsemm.params.base import Count, Strict
from sparsemm.params.stages import Method

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Budgets = Annotated[tuple[Count, ...], Field(min_length=1, description="mean slots per KV head, window included")]
Methods = Annotated[tuple[Method, ...], Field(min_length=1)]


class StudyParams(Strict):
    """What every study has."""

    precision: float = Field(0.05, gt=0.0, description="half-width the number of samples needed is stated for")

    @field_validator("*")
    @classmethod
    def _no_repeats(cls, value: Any) -> Any:
        if isinstance(value, tuple) and list(value) != list(dict.fromkeys(value)):
            raise ValueError("repeats an entry")
        return value

    def problem(self, params: Any) -> str | None:
        """What does not fit the other parts of params.yaml, or None."""
        window = params.allocate.window
        budgets = getattr(self, "budgets", (getattr(self, "budget", window),))
        if min(budgets) < window:
            return f"budget {min(budgets)} is below allocate.window {window}"
        return None


class PagesParams(StudyParams):
    """A study of some pages."""

    samples: int = Field(ge=2, description="pages of the evaluation set")

    def problem(self, params: Any) -> str | None:
        """What does not fit the other parts of params.yaml, or None."""
        if self.samples > params.datasets[params.evaluate.dataset].samples:
            return "samples is more than the evaluation data set has"
        return super().problem(params)


class TasksParams(PagesParams):
    """A study that asks questions about them."""

    tasks: tuple[Literal["read", "qa"], ...] = Field(("read", "qa"), min_length=1)

    def problem(self, params: Any) -> str | None:
        """What does not fit the other parts of params.yaml, or None."""
        return (no_questions(params) if "qa" in self.tasks else None) or super().problem(params)


class BudgetsParams(TasksParams):
    """The same at some budgets."""

    budgets: Budgets


class MethodsParams(BudgetsParams):
    """The same of some methods."""

    methods: Methods


def no_questions(params: Any) -> str | None:
    """Why the evaluation pages cannot be asked about, or None."""
    synthetic = params.datasets[params.evaluate.dataset].source == "synthetic"
    return None if synthetic else "questions can be asked about synthetic pages only"


class Studies(Strict):
    """Which studies are made, in groups; a study that is left out is not made, a group without any is `{}`."""

    def made(self) -> dict[str, Any]:
        """Every study that is made, by name."""
        return {name: given for _, group in self for name, given in group if given is not None}

    def problem(self, params: Any) -> str | None:
        """What does not fit the other parts of params.yaml, or None."""
        for group, studies in self:
            for name, given in studies:
                if given is not None and (reason := given.problem(params)) is not None:
                    return f"{group}.{name}: {reason}"
        return None


@cache
def studies_params() -> type[Studies]:
    """`Studies` with a field for every study there is. Their files are read when params are."""
    studies = import_module("sparsemm.studies")
    groups: dict[str, Any] = {}
    for group in studies.GROUPS:
        declared = {name: studies.load(name) for name in studies.in_group(group)}
        fields: Any = {name: (one.params | None, Field(None, description=one.title)) for name, one in declared.items()}
        kind = create_model(f"{group.title()}Studies", __base__=Strict, __doc__=f"The {group} studies.", **fields)
        groups[group] = (kind, kind())
    return create_model("StudiesParams", __base__=Studies, __doc__=Studies.__doc__, **groups)
