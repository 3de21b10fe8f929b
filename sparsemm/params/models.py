"""params.yaml, `models` and `watch`: where checkpoints come from, and where new ones appear."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, WithJsonSchema

from sparsemm.layouts import families
from sparsemm.params.base import Strict


def _known(family: str) -> str:
    if family not in families():
        raise ValueError(f"{family!r} is not one of {', '.join(families())}")
    return family


Family = Annotated[str, AfterValidator(_known), WithJsonSchema({"type": "string", "enum": list(families())})]


Overrides = dict[str, Any]  # checked together with what they override: `Params.of`
OVERRIDDEN = ("chase", "allocate", "evaluate", "profile", "studies")


def without_folder(checkpoint: str) -> bool:
    """Whether `checkpoint` can only be a local folder (from where stages run), and there is none."""
    hub_id = re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", checkpoint) and not checkpoint.startswith("data/")
    return not hub_id and not Path(checkpoint).is_dir()


class ModelParams(Strict):
    """Where a model comes from."""

    checkpoint: str = Field(min_length=1, description="local folder or hub id")
    revision: str | None = Field(None, min_length=1, description="hub revision, or the content hash of a local folder")
    family: Family = Field(description="layout that knows where the image sits in the prompt")
    dtype: Literal["float32", "float16", "bfloat16"] = Field("float32", description="dtype the model runs in")
    device_map: Annotated[
        Literal["auto"] | None, Field(description="auto: spread over all visible GPUs (accelerate)")
    ] = None
    load_in: Annotated[Literal["4bit", "8bit"] | None, Field(description="quantise the weights (bitsandbytes)")] = None
    note: str = Field("", description="shown beside the model in every table")
    chase: Overrides = Field({}, description="keys of `chase` that have other values for this model")
    allocate: Overrides = Field({}, description="the same of `allocate`")
    evaluate: Overrides = Field({}, description="the same of `evaluate`")
    profile: Overrides = Field({}, description="the same of `profile`")
    studies: Overrides = Field({}, description="the same of `studies`")


class AssembledParams(Strict):
    """A checkpoint that `sparsemm assemble` puts together in artifacts/checkpoints/KEY."""

    updates: str = Field(min_length=1, description="folder of what was trained on top of a packaged language model")


class WatchParams(Strict):
    """Where new revisions of a model appear."""

    source: Literal["folder", "hub", "s3", "mlflow"] = Field(description="what kind of place it is")
    location: str = Field(min_length=1, description="folder, hub id, s3://bucket/prefix or models:/name@alias")
    branch: str = Field("main", min_length=1, description="of a hub id")
    settle_seconds: float = Field(10.0, ge=0.0, description="a folder's files must be at least this old")
