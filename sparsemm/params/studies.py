"""The part `studies` of params.yaml: an optional entry per file of `sparsemm/studies`, which declares its options."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Annotated, Any, Literal

from pydantic import Field, create_model

from sparsemm.params.stages import Method
from sparsemm.params.strict import Count, Strict, WithoutRepeats

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Budgets = Annotated[tuple[Count, ...], Field(min_length=1, description="mean slots per KV head, window included")]
Methods = Annotated[tuple[Method, ...], Field(min_length=1)]


class StudyParams(WithoutRepeats):
    """The options of every study."""

    precision: float = Field(0.05, gt=0.0, description="half-width of an interval, for the pages needed")

    def problem(self, params: Any) -> str | None:
        """Returns what does not fit the other parts of params.yaml, or None."""
        window = params.allocate.window
        budgets = getattr(self, "budgets", (getattr(self, "budget", window),))
        if min(budgets, default=window) < window:
            return f"budget {min(budgets)} is below allocate.window {window}"
        return None


class PagesParams(StudyParams):
    """The options of a study of some pages."""

    samples: int = Field(ge=2, description="first pages of the evaluation set")

    def problem(self, params: Any) -> str | None:
        """Returns what does not fit the other parts of params.yaml, or None."""
        if self.samples > params.datasets[params.evaluate.dataset].samples:
            return "samples is more than the evaluation data set has"
        return super().problem(params)


class TasksParams(PagesParams):
    """The options of a study that asks questions about pages."""

    tasks: tuple[Literal["read", "qa"], ...] = Field(("read", "qa"), min_length=1)

    def problem(self, params: Any) -> str | None:
        """Returns what does not fit the other parts of params.yaml, or None."""
        return (no_questions(params) if "qa" in self.tasks else None) or super().problem(params)


class BudgetsParams(TasksParams):
    """The options of a study at some budgets."""

    budgets: Budgets


class MethodsParams(BudgetsParams):
    """The options of a study that compares methods at some budgets."""

    methods: Methods


def no_questions(params: Any) -> str | None:
    """Returns why no questions can be asked about the evaluation pages, or None."""
    synthetic = params.datasets[params.evaluate.dataset].source == "synthetic"
    return None if synthetic else "questions can be asked about synthetic pages only"


class Studies(Strict):
    """The studies to run, in groups. A study that is left out is not run; a group without any is `{}`."""

    def enabled(self) -> dict[str, Any]:
        """Returns the options of every study that is not left out, by name."""
        return {name: options for _, group in self for name, options in group if options is not None}

    def problem(self, params: Any) -> str | None:
        """Returns what does not fit the other parts of params.yaml, or None."""
        for group, studies in self:
            for name, options in studies:
                if options is not None and (reason := options.problem(params)) is not None:
                    return f"{group}.{name}: {reason}"
        return None


@cache
def studies_params() -> type[Studies]:
    """Returns `Studies` with a field for every study. The files of all studies are read for this."""
    studies = import_module("sparsemm.studies")
    groups: dict[str, Any] = {}
    for group in studies.GROUPS:
        declared = {name: studies.load(name) for name in studies.in_group(group)}
        fields: Any = {name: (one.params | None, Field(None, description=one.title)) for name, one in declared.items()}
        kind = create_model(f"{group.title()}Studies", __base__=Strict, __doc__=f"The {group} studies.", **fields)
        groups[group] = (kind, kind())
    return create_model("StudiesParams", __base__=Studies, __doc__=Studies.__doc__, **groups)
