"""The parts `models`, `assembled` and `watch` of params.yaml: checkpoints, and sources of new ones."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, WithJsonSchema

from sparsemm.layouts import FAMILIES
from sparsemm.params.strict import Strict


def _check_family(family: str) -> str:
    if family not in FAMILIES:
        raise ValueError(f"{family!r} is not one of {', '.join(FAMILIES)}")
    return family


Family = Annotated[str, AfterValidator(_check_family), WithJsonSchema({"type": "string", "enum": list(FAMILIES)})]
Overrides = dict[str, Any]  # `Params.of` checks them together with the values that they override
OVERRIDDEN = ("chase", "allocate", "evaluate", "profile", "tune", "studies")


def without_folder(checkpoint: str) -> bool:
    """Tells whether `checkpoint` can only be a local folder (relative to the working folder), and does not exist."""
    hub_id = re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", checkpoint) and not checkpoint.startswith("data/")
    return not hub_id and not Path(checkpoint).is_dir()


class ModelParams(Strict):
    """A model: its checkpoint, family and precision, and the params that it overrides."""

    checkpoint: str = Field(min_length=1, description="local folder or hub id")
    revision: str | None = Field(None, min_length=1, description="hub revision, or the content hash of a local folder")
    family: Family = Field(description="layout that locates the image in the prompt")
    dtype: Literal["float32", "float16", "bfloat16"] = Field("float32", description="dtype of the running model")
    device_map: Annotated[
        Literal["auto"] | None, Field(description="auto: spread over all visible GPUs (accelerate)")
    ] = None
    load_in: Annotated[Literal["4bit", "8bit"] | None, Field(description="quantise the weights (bitsandbytes)")] = None
    note: str = Field("", description="shown beside the model in every table")
    chase: Overrides = Field({}, description="keys of `chase` that have other values for this model")
    allocate: Overrides = Field({}, description="the same for `allocate`")
    evaluate: Overrides = Field({}, description="the same for `evaluate`")
    profile: Overrides = Field({}, description="the same for `profile`")
    tune: Overrides = Field({}, description="the same for `tune`")
    studies: Overrides = Field({}, description="the same for `studies`")

    def identity(self) -> dict[str, Any]:
        """Returns which checkpoint it is and how it is loaded, as JSON: the entry without its note and overrides."""
        return self.model_dump(mode="json", exclude={"note", *OVERRIDDEN})


class AssembledParams(Strict):
    """A checkpoint that `sparsemm assemble` writes to artifacts/checkpoints/KEY."""

    updates: str = Field(min_length=1, description="folder of the weights trained on a packaged language model")


class WatchParams(Strict):
    """A source where new revisions of a model appear."""

    source: Literal["folder", "hub", "s3", "mlflow"] = Field(description="kind of source")
    location: str = Field(min_length=1, description="folder, hub id, s3://bucket/prefix or models:/name@alias")
    branch: str = Field("main", min_length=1, description="branch of a hub id")
    settle_seconds: float = Field(10.0, ge=0.0, description="minimum age of the files in a folder, in seconds")
