"""The parts `registry` and `pipeline` of params.yaml: where results are published and committed, and the gate."""

from __future__ import annotations

from pydantic import Field, field_validator

from sparsemm.params.strict import Count, Strict


class GateParams(Strict):
    """The thresholds that a candidate must reach to become champion."""

    reference_budget: Count | None = Field(None, description="budget of the comparison; default: the largest")
    min_split_half: float = Field(0.9, ge=-1.0, le=1.0, description="correlation of scores from two halves of the set")
    min_rank_correlation: float = Field(0.9, ge=-1.0, le=1.0, description="with the champion, over all heads")
    min_top_overlap: float = Field(0.5, ge=0.0, le=1.0, description="share of the champion's best 5 % heads")
    min_accuracy_ratio: float = Field(0.8, ge=0.0, description="accuracy of sparsemm over that of full, every task")
    max_accuracy_drop: float = Field(0.05, ge=0.0, le=1.0, description="accuracy lost against the champion, every task")
    require_recipe: bool = Field(False, description="refuse a version without a recipe, instead of a warning")


class PipelineParams(Strict):
    """Where the flows commit results."""

    branch: str | None = Field(
        None, min_length=1, description="branch that flows commit to, checked out; default: the one that is checked out"
    )


class RegistryParams(Strict):
    """Where results are published, and which versions may become champion."""

    tracking_uri: str | None = Field(
        None, description="default: MLFLOW_TRACKING_URI, else SQLite in artifacts/registry; never with credentials"
    )
    experiment: str = Field("sparsemm", min_length=1, description="MLflow experiment of the runs")
    gate: GateParams = GateParams.model_validate({})

    @field_validator("tracking_uri")
    @classmethod
    def _no_credentials(cls, value: str | None) -> str | None:
        if value is not None and "@" in value.partition("://")[2].partition("/")[0]:
            raise ValueError("holds credentials; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead")
        return value
