"""The parts of params.yaml that configure the stages."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from sparsemm.errors import BudgetError
from sparsemm.params.strict import Count, Strict, WithoutRepeats
from sparsemm.policies import METHODS, SELECTORS, parts


def _check_method(method: str) -> str:
    try:
        parts(method)
    except BudgetError as error:
        raise ValueError(str(error)) from error
    return method


WITH_SELECTOR = "|".join(name for name in METHODS if name != "full")
PATTERN = rf"^(full|({WITH_SELECTOR})(\+({'|'.join(SELECTORS)}))?)$"  # for editors; `_check_method` gives the reason
Method = Annotated[str, AfterValidator(_check_method), Field(json_schema_extra={"pattern": PATTERN})]
Shape = Literal["small", "vicuna-7b", "mistral-7b", "qwen2-vl-7b"]  # names in sparsemm.profiling.shapes
Task = Literal[
    "read",
    "qa",
    "docvqa_val",
    "ocrbench",
    "textvqa_val",
    "chartqa",
    "textcaps_val",
    "mmbench_en_dev",
    "gqa",
    "vqav2_val",
]


class StopParams(Strict):
    """When a chase stops early. The criteria are checked after every shard, in the order of the shards."""

    min_samples: Count = Field(description="samples that are always scored")
    top_overlap: float = Field(
        1.0, ge=0.0, le=1.0, description="least overlap of the top 5 % of heads before and after a shard"
    )
    rank_correlation: float = Field(
        0.95, ge=-1.0, le=1.0, description="least correlation of the scores of even and of odd samples"
    )
    patience: Count = Field(2, description="consecutive shards for which both must hold")


class ChaseParams(Strict):
    """How heads are scored."""

    dataset: str = Field(description="key of a data set")
    batch_size: Count = 32
    prompt: str = Field("Read the page.", min_length=1)
    answer: Literal["greedy", "ground_truth"] = Field("greedy", description="answer text that is aligned with boxes")
    align: Literal["ordered", "paper"] = Field("ordered", description="in order, or substring of exactly one chunk")
    max_new_tokens: Count = 128
    shard_size: Count = Field(64, description="samples per shard; a stopped chase resumes after its last whole shard")
    max_bad: float = Field(0.05, ge=0.0, le=1.0, description="share of records that may be skipped; more is an error")
    stop: StopParams | None = Field(None, description="when to stop early; default: never")


class RobustnessParams(Strict):
    """A further data set to chase over, which shows how far the score tables agree."""

    prompt: str | None = Field(None, min_length=1, description="prompt, if `chase.prompt` does not fit its images")


class AllocateParams(Strict):
    """How budgets are allocated from a score table."""

    budgets: tuple[Count, ...] = Field(min_length=1, description="mean slots per KV head, window included")
    window: Count = Field(32, description="newest tokens every head keeps")
    rho: float = Field(0.1, ge=0.0, le=1.0, description="share of the slots beyond the window that is split evenly")
    mode: Literal["exact", "paper"] = Field("exact", description="exact totals, or the public code's arithmetic")

    @model_validator(mode="after")
    def _budgets_hold_the_window(self) -> Self:
        if min(self.budgets) < self.window:
            raise ValueError(f"budget {min(self.budgets)} is below the window of {self.window}")
        if list(self.budgets) != sorted(set(self.budgets)):
            raise ValueError("budgets must increase and not repeat")
        return self


class EvaluateParams(WithoutRepeats):
    """The tasks to evaluate, and the methods to evaluate them with."""

    dataset: str = Field(description="key of a data set")
    samples: Count = Field(description="pages and questions about them, or first documents of a task of the paper")
    batch_size: Count = 32
    tasks: tuple[Task, ...] = Field(("read", "qa"), min_length=1)
    source: str = Field("hub", min_length=1, description="source of the paper's tasks: hub, s3://bucket/prefix, folder")
    methods: tuple[Method, ...] = Field(min_length=1)
    downsampled: bool = Field(False, description="also the full cache of images made smaller until it fits each budget")
    pooling_kernel: int = Field(5, ge=1, description="average-pool over the observation scores; odd")
    max_new_tokens: Count = 128
    bootstrap: Count = Field(2000, description="bootstrap resamples for an interval")
    seed: int = Field(0, ge=0)
    random_seeds: Count = Field(1, description="draws of random scores per page for the method random")

    @field_validator("pooling_kernel")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError("must be odd, so that a position is at the centre of its pool")
        return value


class ProfileParams(WithoutRepeats):
    """The methods and lengths to profile."""

    methods: tuple[Method, ...] = Field(min_length=1)
    budget: Count
    lengths: tuple[Count, ...] = Field(min_length=1, description="prompt lengths in tokens")
    new_tokens: int = Field(16, ge=2)
    repetitions: Count = 3
    batch_size: Count = 1
    shapes: tuple[Shape, ...] = Field((), description="7B configurations to time with random weights in bf16")
