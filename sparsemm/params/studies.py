"""The part `studies` of params.yaml: one optional entry per study of `sparsemm.studies`, in groups."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from sparsemm.params.base import Count, Strict
from sparsemm.params.stages import Method

Task = Literal["read", "qa"]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Budgets = Annotated[tuple[Count, ...], Field(min_length=1, description="mean slots per KV head, window included")]
Methods = Annotated[tuple[Method, ...], Field(min_length=1)]


class Derived(Strict):
    """A study of what other stages wrote; nothing is measured again."""

    precision: float = Field(0.05, gt=0.0, description="half-width the number of samples needed is stated for")


class Measured(Derived):
    """A study that asks the model."""

    samples: int = Field(ge=2, description="pages of the evaluation set")
    tasks: tuple[Task, ...] = Field(("read", "qa"), min_length=1)


class MaskingParams(Measured):
    """Heads switched off, by score and by chance."""

    fractions: tuple[Annotated[float, Field(gt=0.0, le=1.0)], ...] = Field(min_length=1, description="of all heads")
    zero: tuple[Literal["output", "query"], ...] = Field(("output", "query"), min_length=1)
    seeds: int = Field(3, ge=1, description="random draws for every page behind each control")


class RhoParams(Measured):
    """The share that is split evenly."""

    values: tuple[Share, ...] = Field(min_length=1)
    budget: Count


class BudgetedParams(Measured):
    """A study at some budgets."""

    budgets: Budgets


class MethodsParams(BudgetedParams):
    """A study of some methods at some budgets."""

    methods: Methods


class LaterParams(Strict):
    """Questions that come after the cache was compressed; they need pages that can be asked about."""

    precision: float = Field(0.05, gt=0.0, description="half-width the number of samples needed is stated for")
    samples: int = Field(ge=2, description="pages of the evaluation set")
    methods: Methods
    budgets: Budgets
    neutral: str = Field("Read the page.", min_length=1, description="what the cache is compressed after")


class StorageParams(MethodsParams):
    """8-bit storage, at equal slots and at equal bytes."""

    storage: Literal["int8", "fp8"] = "int8"


class LengthParams(Derived):
    """Accuracy by length of the reference answer."""

    groups: int = Field(3, ge=2, description="groups of about as many samples, short to long")


class LookingParams(Strict):
    """How much heads look at the word that is said."""

    precision: float = Field(0.05, gt=0.0, description="half-width the number of samples needed is stated for")
    samples: int = Field(ge=2, description="pages of the evaluation set")
    share: float = Field(0.05, gt=0.0, le=1.0, description="of all heads in each group")


class SearchParams(BudgetedParams):
    """Allocations that are tried, on all but the last pages."""

    held_out: Count = Field(description="last pages, which the search never asks about")

    @field_validator("held_out")
    @classmethod
    def _some_are_left(cls, value: int, info: ValidationInfo) -> int:
        if value >= info.data.get("samples", value + 1):
            raise ValueError("nothing is left to search on")
        return value


class ConfirmParams(SearchParams):
    """A candidate of the search, on the pages it never asked about."""

    candidate: str = Field(description="which one; the report says which is best by the searches of all models")
    methods: Methods = Field(("snapkv", "adakv", "full"), description="asked beside it and sparsemm")


class Group(Strict):
    """Studies of one stage of dvc.yaml; one that is left out is not made."""

    @field_validator("*")
    @classmethod
    def _no_repeats(cls, value: Strict | None) -> Strict | None:
        for name, given in value or ():
            if isinstance(given, tuple) and list(given) != list(dict.fromkeys(given)):
                raise ValueError(f"{name} repeats an entry")
        return value


class DerivedStudies(Group):
    """Studies of what other stages wrote."""

    curve: Derived | None = Field(None, description="accuracy against budget, and the area under it")
    length: LengthParams | None = Field(None, description="accuracy by answer length")
    cost: Derived | None = Field(None, description="accuracy and latency at the profiled budget")


class MeasuredStudies(Group):
    """Studies that ask the model."""

    masking: MaskingParams | None = Field(None, description="visual heads off against random heads off")
    rho: RhoParams | None = Field(None, description="the uniform part's share")
    parts: BudgetedParams | None = Field(None, description="window, uniform part and score part")
    later: LaterParams | None = Field(None, description="the question comes after the cache was compressed")
    holding: MethodsParams | None = Field(None, description="eviction while answering")
    storage: StorageParams | None = Field(None, description="8-bit storage")


class ComparedStudies(Group):
    """Studies of the score tables of `robustness`."""

    sources: BudgetedParams | None = Field(None, description="score tables of other data sets")


class WatchedStudies(Group):
    """Studies of attention."""

    looking: LookingParams | None = Field(None, description="what visual and non-visual heads look at")


class SearchedStudies(Group):
    """Studies of many candidates."""

    search: SearchParams | None = Field(None, description="allocations at equal slots, on the first pages")


class ConfirmedStudies(Group):
    """Studies of one candidate of the search."""

    confirm: ConfirmParams | None = Field(None, description="a candidate of the search, on the held-out pages")


class StudiesParams(Strict):
    """Which studies are made, in groups; a group without any is `{}`."""

    derived: DerivedStudies = DerivedStudies.model_validate({})
    measured: MeasuredStudies = MeasuredStudies.model_validate({})
    compared: ComparedStudies = ComparedStudies.model_validate({})
    watched: WatchedStudies = WatchedStudies.model_validate({})
    searched: SearchedStudies = SearchedStudies.model_validate({})
    confirmed: ConfirmedStudies = ConfirmedStudies.model_validate({})

    def made(self) -> dict[str, Any]:
        """Every study that is made, by name."""
        return {name: given for _, group in self for name, given in group if given is not None}

    def problem(self, window: int, samples: int, synthetic: bool, robustness: bool) -> str | None:
        """What does not fit the other parts of params.yaml, or None.

        Args:
            window: allocate.window.
            samples: of the evaluation data set.
            synthetic: whether its pages can be asked about.
            robustness: whether there are further data sets to chase over.
        """
        if self.compared.sources is not None and not robustness:
            return "compared.sources: no table to compare with: name a data set under robustness, or leave it out"
        for name, given in self.made().items():
            budgets = getattr(given, "budgets", (getattr(given, "budget", window),))
            if min(budgets) < window:
                return f"{name}: budget {min(budgets)} is below allocate.window {window}"
            if getattr(given, "samples", 0) > samples:
                return f"{name}.samples is more than the evaluation data set has"
            if (name == "later" or "qa" in getattr(given, "tasks", ())) and not synthetic:
                return f"{name}: questions can be asked about synthetic pages only"
        search, confirm = self.searched.search, self.confirmed.confirm
        if confirm is not None:
            shared = SearchParams.model_fields.keys() - Derived.model_fields.keys()
            if search is None or any(getattr(confirm, n) != getattr(search, n) for n in shared):
                return f"confirm: {', '.join(sorted(shared))} are not those of search"
        return None
