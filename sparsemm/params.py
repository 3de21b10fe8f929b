"""params.yaml, typed and strict: the only configuration there is."""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from sparsemm.errors import ParamsError

Family = Literal["llava_next", "qwen2_vl"]
Method = Literal["full", "sparsemm", "snapkv", "pyramidkv", "adakv", "random", "streaming", "h2o", "sparsemm-adaptive"]
Format = Literal["records_jsonl", "synthdog", "coco", "mlt2019", "ctw"]
Count = Annotated[int, Field(ge=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class ModelParams(_Strict):
    """Where a model comes from."""

    checkpoint: str = Field(min_length=1, description="local folder or hub id")
    revision: str | None = Field(None, description="hub revision, or the content hash of a local folder")
    family: Family = Field(description="layout that knows where the image sits in the prompt")
    dtype: Literal["float32", "float16", "bfloat16"] = Field("float32", description="dtype the model runs in")
    note: str = Field("", description="shown beside the model in every table")


class SyntheticParams(_Strict):
    """Pages that are drawn here."""

    source: Literal["synthetic"] = Field(description="where the records come from")
    split: Literal["train", "calibration", "evaluation"] = Field(description="which of the disjoint draws")
    samples: Count = Field(description="records to keep")
    seed: int = Field(0, ge=0)


class _Drawn(_Strict):
    """What every source that is not drawn here has."""

    samples: Count = Field(description="records to keep, at most")
    rows: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=1)]] | None = Field(
        None, description="[first, stop) of the source's rows (of a pdf source: documents) to draw from; default all"
    )
    revision: str | None = Field(
        None, min_length=1, description="what the source must hold: hub commit or content hash"
    )
    licence: str | None = Field(None, min_length=1, description="written into every record; a hub card may say it")
    max_bad: float = Field(0.05, ge=0.0, le=1.0, description="share of bad rows that are skipped; more is an error")

    @field_validator("rows")
    @classmethod
    def _rise(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        if value is not None and value[0] >= value[1]:
            raise ValueError(f"[{value[0]}, {value[1]}) holds no row")
        return value


class _Formatted(_Drawn):
    """A source whose files may be in one of several formats."""

    format: Format = Field(description="what the files are")
    split: str | None = Field(None, min_length=1, description="named part, as the files call it: train, val, ...")


class HubParams(_Formatted):
    """A data set on the Hugging Face hub."""

    source: Literal["hub"] = Field(description="where the records come from")
    repo: str = Field(pattern=r"^[\w.-]+/[\w.-]+$", description="owner/name; HF_ENDPOINT and HF_TOKEN count")


class S3Params(_Formatted):
    """Files on S3 or any store that speaks its protocol."""

    source: Literal["s3"] = Field(description="where the records come from")
    location: str = Field(pattern=r"^s3://[^/@\s]+(/.*)?$", description="s3://bucket/prefix; AWS_ENDPOINT_URL counts")
    licence: str = Field(min_length=1, description="written into every record")


class FolderParams(_Formatted):
    """Files in a local folder."""

    source: Literal["folder"] = Field(description="where the records come from")
    path: str = Field(min_length=1, description="folder, from the repository's root")
    licence: str = Field(min_length=1, description="written into every record")


class PdfParams(_Drawn):
    """Pages of born-digital PDF files."""

    source: Literal["pdf"] = Field(description="where the records come from")
    path: str = Field(min_length=1, description="PDF file, or folder of them, from the repository's root")
    licence: str = Field(min_length=1, description="written into every record")
    dpi: int = Field(144, ge=36, le=600, description="pixels an inch of page")


DatasetParams = Annotated[
    SyntheticParams | HubParams | S3Params | FolderParams | PdfParams, Field(discriminator="source")
]


def _place(given: DatasetParams) -> str:
    """Where a data set's rows are, so that equal places have equal names."""
    if isinstance(given, SyntheticParams):
        return "synthetic"
    if isinstance(given, HubParams):
        return given.repo.lower()
    if isinstance(given, S3Params):
        return given.location.rstrip("/")
    return posixpath.normpath(given.path)


def _may_share(one: DatasetParams, other: DatasetParams) -> str | None:
    """Why two data sets might hold the same record, or None if they cannot.

    Names are compared, not contents: a copy of a data set at a second place is not noticed.
    """
    if one.source != other.source:
        return None
    splits = [None if isinstance(given, PdfParams) else given.split for given in (one, other)]
    if isinstance(one, SyntheticParams) or isinstance(other, SyntheticParams):
        return "draw from the same split" if splits[0] == splits[1] else None
    places = _place(one), _place(other)
    if places[0] != places[1]:
        inside = any(b.startswith("" if a == "." else a + "/") for a, b in (places, places[::-1]))
        local_or_s3 = not isinstance(one, HubParams)
        return f"overlap: {places[0]} and {places[1]} lie one inside the other" if inside and local_or_s3 else None
    if None not in splits and splits[0] != splits[1]:
        return None
    if one.rows and other.rows and (one.rows[1] <= other.rows[0] or other.rows[1] <= one.rows[0]):
        return None
    return f"may draw the same rows of {places[0]}; give them different splits, or `rows` that do not overlap"


class ChaseParams(_Strict):
    """How heads are scored."""

    dataset: str = Field(description="key of a data set")
    batch_size: Count = 32
    prompt: str = Field("Read the page.", min_length=1)
    answer: Literal["greedy", "ground_truth"] = Field("greedy", description="whose text is aligned with the boxes")
    align: Literal["ordered", "paper"] = Field("ordered", description="in order, or substring of exactly one chunk")
    max_new_tokens: Count = 128
    shard_size: Count = Field(64, description="samples between two points a stopped chase resumes from")


class AllocateParams(_Strict):
    """How a score table becomes budgets."""

    budgets: tuple[Count, ...] = Field(min_length=1, description="mean slots per KV head, window included")
    window: Count = Field(32, description="newest tokens every head keeps")
    rho: float = Field(0.1, ge=0.0, le=1.0, description="share beyond the window that is split evenly")
    mode: Literal["exact", "paper"] = Field("exact", description="exact totals, or the public code's arithmetic")

    @model_validator(mode="after")
    def _budgets_hold_the_window(self) -> Self:
        if min(self.budgets) < self.window:
            raise ValueError(f"budget {min(self.budgets)} is below the window of {self.window}")
        if list(self.budgets) != sorted(set(self.budgets)):
            raise ValueError("budgets must rise and not repeat")
        return self


class EvaluateParams(_Strict):
    """Which tasks are run, with which methods."""

    dataset: str = Field(description="key of a data set")
    samples: Count = Field(description="pages, and questions about them")
    batch_size: Count = 32
    tasks: tuple[Literal["read", "qa"], ...] = Field(("read", "qa"), min_length=1)
    methods: tuple[Method, ...] = Field(min_length=1)
    pooling_kernel: int = Field(5, ge=1, description="average-pool over the observation scores; odd")
    max_new_tokens: Count = 128
    bootstrap: Count = Field(2000, description="resamples behind an interval")
    seed: int = Field(0, ge=0)

    @field_validator("pooling_kernel")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError("must be odd, so that a position is the middle of its pool")
        return value


class ProfileParams(_Strict):
    """What is timed."""

    methods: tuple[Method, ...] = Field(min_length=1)
    budget: Count
    lengths: tuple[Count, ...] = Field(min_length=1, description="prompt lengths in tokens")
    new_tokens: int = Field(16, ge=2)
    repetitions: Count = 3
    batch_size: Count = 1


class WatchParams(_Strict):
    """Where new revisions of a model appear."""

    source: Literal["folder", "hub", "s3", "mlflow"] = Field(description="what kind of place it is")
    location: str = Field(min_length=1, description="folder, hub id, s3://bucket/prefix or models:/name@alias")
    branch: str = Field("main", min_length=1, description="of a hub id")
    settle_seconds: float = Field(10.0, ge=0.0, description="a folder's files must be at least this old")


class GateParams(_Strict):
    """What a candidate must reach to become champion."""

    reference_budget: Count | None = Field(None, description="where accuracy is compared; default the largest budget")
    min_split_half: float = Field(0.9, ge=-1.0, le=1.0, description="correlation of scores from two halves of the set")
    min_rank_correlation: float = Field(0.9, ge=-1.0, le=1.0, description="with the champion, over all heads")
    min_top_overlap: float = Field(0.5, ge=0.0, le=1.0, description="share of the champion's best 5 % heads")
    min_accuracy_ratio: float = Field(0.8, ge=0.0, description="accuracy of sparsemm over that of full, every task")
    max_accuracy_drop: float = Field(0.05, ge=0.0, le=1.0, description="accuracy lost against the champion, every task")


class RegistryParams(_Strict):
    """Where results are published, and what may become champion."""

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


class Params(_Strict):
    """The whole of params.yaml."""

    models: dict[str, ModelParams]
    datasets: dict[str, DatasetParams]
    chase: ChaseParams
    allocate: AllocateParams
    evaluate: EvaluateParams
    profile: ProfileParams
    watch: dict[str, WatchParams] = Field({}, description="model key -> source that `rechase` polls")
    registry: RegistryParams = RegistryParams.model_validate({})

    @field_validator("models", "datasets", "watch")
    @classmethod
    def _keys(cls, value: dict[str, Any]) -> dict[str, Any]:
        for key in value:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", key):
                raise ValueError(f"key {key!r} may hold only letters, digits, - and _")
        return value

    @model_validator(mode="after")
    def _known_datasets(self) -> Self:
        for stage, name in (("chase", self.chase.dataset), ("evaluate", self.evaluate.dataset)):
            if name not in self.datasets:
                raise ValueError(f"{stage}.dataset {name!r} is not under datasets")
        if self.evaluate.samples > self.datasets[self.evaluate.dataset].samples:
            raise ValueError(f"evaluate.samples is more than datasets.{self.evaluate.dataset}.samples")
        chased, evaluated = self.datasets[self.chase.dataset], self.datasets[self.evaluate.dataset]
        reason = _may_share(chased, evaluated)
        if reason is not None:
            raise ValueError(f"chase.dataset and evaluate.dataset {reason}")
        if "qa" in self.evaluate.tasks and evaluated.source != "synthetic":
            raise ValueError(f"evaluate.tasks: qa asks about synthetic pages only, {self.evaluate.dataset} has others")
        if self.profile.budget < self.allocate.window:
            raise ValueError(f"profile.budget {self.profile.budget} is below allocate.window {self.allocate.window}")
        budget = self.registry.gate.reference_budget
        if budget is not None and budget not in self.allocate.budgets:
            raise ValueError(f"registry.gate.reference_budget {budget} is not under allocate.budgets")
        return self

    def model(self, key: str) -> ModelParams:
        """The entry of one model.

        Raises:
            ParamsError: if there is none.
        """
        if key not in self.models:
            known = ", ".join(self.models) or "none yet"
            raise ParamsError(f"no model {key!r}", where="params.yaml: models", hint=f"known: {known}")
        return self.models[key]


class _NoRepeats(yaml.SafeLoader):
    """YAML without the rule that of two equal keys the last one silently wins."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)  # type: ignore[no-untyped-call]
            if key in seen:
                mark = key_node.start_mark
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} appears twice", mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def parse_params(text: str, where: str = "params.yaml") -> Params:
    """Parse and check the text of a params file.

    Raises:
        ParamsError: with file, key and reason of everything that is wrong.
    """
    try:
        raw = yaml.load(text, Loader=_NoRepeats)  # noqa: S506  (a SafeLoader)
    except yaml.YAMLError as error:
        raise ParamsError(f"not YAML: {error}", where=where) from error
    if not isinstance(raw, dict):
        raise ParamsError("not a mapping", where=where, hint="`sparsemm params --schema` prints what belongs there")
    try:
        # JSON mode: lists become tuples, everything else stays strict.
        return Params.model_validate_json(json.dumps(raw, default=str))
    except ValidationError as error:
        reasons = []
        for one in error.errors(include_url=False):
            at = [str(part) for part in one["loc"]]
            if at[:1] == ["datasets"]:
                del at[2:3]  # the kind of source that pydantic puts between a data set and its key
            key = ".".join(at) or "(top level)"
            reasons.append(f"{key}: {one['msg'].removeprefix('Value error, ')}")
        raise ParamsError("; ".join(reasons), where=where) from error


def load_params(path: str | Path = "params.yaml") -> Params:
    """Read, parse and check a params file.

    Raises:
        ParamsError: with file, key and reason of everything that is wrong.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ParamsError(f"cannot be read: {error}", where=str(path), hint="run from the repository root") from error
    return parse_params(text, str(path))


def schema() -> dict[str, Any]:
    """JSON schema of params.yaml."""
    return Params.model_json_schema()
