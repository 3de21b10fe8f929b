"""Typed, strict parsing of params.yaml, the only configuration file."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from sparsemm.errors import ParamsError
from sparsemm.params.datasets import DatasetParams, may_share
from sparsemm.params.models import OVERRIDDEN, AssembledParams, ModelParams, WatchParams, without_folder
from sparsemm.params.registry import PipelineParams, RegistryParams
from sparsemm.params.stages import AllocateParams, ChaseParams, EvaluateParams, ProfileParams, RobustnessParams
from sparsemm.params.strict import Strict, check_key
from sparsemm.params.studies import studies_params
from sparsemm.params.tune import TuneParams

if TYPE_CHECKING:
    from sparsemm.params.studies import Studies as StudiesParams  # with a field for every study: `_complete`

__all__ = ["ModelParams", "Params", "WatchParams", "load_params", "parse_params", "schema"]


class Params(Strict):
    """The whole of params.yaml."""

    models: dict[str, ModelParams]
    datasets: dict[str, DatasetParams]
    assembled: dict[str, AssembledParams] = Field({}, description="checkpoints assembled in artifacts/checkpoints")
    chase: ChaseParams
    robustness: dict[str, RobustnessParams] = Field({}, description="further data sets to chase over, by key")
    allocate: AllocateParams
    evaluate: EvaluateParams
    profile: ProfileParams
    tune: TuneParams | None = Field(None, description="the search for a method, if it is wanted")
    studies: StudiesParams = Field(default_factory=lambda: studies_params()())
    watch: dict[str, WatchParams] = Field({}, description="model key -> source that `rechase` polls")
    registry: RegistryParams = RegistryParams.model_validate({})
    pipeline: PipelineParams = PipelineParams(branch=None)

    @field_validator("models", "assembled", "datasets", "watch")
    @classmethod
    def _keys(cls, value: dict[str, Any]) -> dict[str, Any]:
        for key in value:
            check_key(key)
        return value

    @model_validator(mode="after")
    def _known_datasets(self) -> Self:
        for stage, name in (("chase", self.chase.dataset), ("evaluate", self.evaluate.dataset)):
            if name not in self.datasets:
                raise ValueError(f"{stage}.dataset {name!r} is not under datasets")
        for name in self.robustness:
            if name not in self.datasets:
                raise ValueError(f"robustness.{name} is not under datasets")
            if name == self.chase.dataset:
                raise ValueError(f"robustness.{name} is chase.dataset itself")
        chased, evaluated = self.datasets[self.chase.dataset], self.datasets[self.evaluate.dataset]
        if {"read", "qa"} & set(self.evaluate.tasks) and self.evaluate.samples > evaluated.samples:
            raise ValueError(f"evaluate.samples is more than datasets.{self.evaluate.dataset}.samples")
        if (reason := may_share(chased, evaluated)) is not None:
            raise ValueError(f"chase.dataset and evaluate.dataset {reason}")
        if "qa" in self.evaluate.tasks and evaluated.source != "synthetic":
            raise ValueError(f"evaluate.tasks: qa needs synthetic pages, {self.evaluate.dataset} has others")
        if self.profile.budget < self.allocate.window:
            raise ValueError(f"profile.budget {self.profile.budget} is below allocate.window {self.allocate.window}")
        if (reason := self.studies.problem(self)) is not None:
            raise ValueError(f"studies.{reason}")
        if self.tune is not None and (reason := self.tune.problem(self)) is not None:
            raise ValueError(f"tune: {reason}")
        budget = self.registry.gate.reference_budget
        if budget is not None and budget not in self.allocate.budgets:
            raise ValueError(f"registry.gate.reference_budget {budget} is not under allocate.budgets")
        return self

    @model_validator(mode="after")
    def _overrides_fit(self) -> Self:
        for key, entry in self.models.items():
            for name in ("chase", "evaluate"):  # their data sets are dependencies in dvc.yaml
                if "dataset" in getattr(entry, name):
                    raise ValueError(f"models.{key}.{name}.dataset: the data set is the same for all models")
            try:
                self.of(key)
            except ValidationError as error:
                raise ValueError("; ".join(f"models.{key}.{reason}" for reason in _reasons(error))) from error
        return self

    def model(self, key: str) -> ModelParams:
        """Returns the entry of one model. Raises ParamsError if there is none."""
        if key not in self.models:
            keys = ", ".join(self.models) or "none yet"
            raise ParamsError(f"no model {key!r}", where="params.yaml: models", hint=f"known: {keys}")
        return self.models[key]

    def of(self, key: str) -> Params:
        """Returns these params with the overrides of one model's entry applied. Applying them twice changes nothing.

        Raises:
            ParamsError: if there is no such model.
            ValidationError: if the resulting params are not valid; `load_params` has checked this for every model.
        """
        entry = self.model(key)
        changes = {name: getattr(entry, name) for name in OVERRIDDEN if getattr(entry, name)}
        if not changes:
            return self
        raw = self.model_dump(mode="json", exclude_unset=True)
        if "studies" in changes:
            changes["studies"] = _of_enabled_studies(changes["studies"], raw.get("studies", {}))
        raw["models"] = {key: {k: v for k, v in raw["models"][key].items() if k not in OVERRIDDEN}}
        own = Params.model_validate_json(json.dumps(_merged(raw, changes)))
        parts = {name: getattr(own, name) for name in OVERRIDDEN}
        return self.model_copy(update=parts | {"models": self.models | own.models})

    def check_folders(self, keys: Iterable[str], where: str = "params.yaml") -> None:
        """Checks that the local checkpoint folders of models exist. Hub ids and unknown keys are not checked.

        Raises ParamsError if a folder is missing; it names all of them, and the params file `where`.
        """
        folders = {key: self.models[key].checkpoint for key in keys if key in self.models}
        missing = {key: folder for key, folder in folders.items() if without_folder(folder)}
        if missing:
            what = "; ".join(f"models.{key}.checkpoint: no folder {folder}" for key, folder in missing.items())
            key = next(iter(missing))
            hint = f"correct the path, download it again, or `sparsemm models remove {key}`"
            if key in self.assembled:
                hint = f"`sparsemm assemble {key}` creates it"
            raise ParamsError(what, where=where, hint=hint)

    def over(self, dataset: str | None) -> Params:
        """Returns these params with another data set and its prompt under `chase`; None changes nothing.

        Raises ParamsError if the data set is not under `robustness`.
        """
        if dataset is None:
            return self
        if dataset not in self.robustness:
            keys = ", ".join(self.robustness) or "none yet"
            raise ParamsError(f"no data set {dataset!r}", where="params.yaml: robustness", hint=f"known: {keys}")
        prompt = self.robustness[dataset].prompt or self.chase.prompt
        chase = self.chase.model_copy(update={"dataset": dataset, "prompt": prompt})
        return self.model_copy(update={"chase": chase})


def _of_enabled_studies(changes: dict[str, Any], enabled: dict[str, Any]) -> dict[str, Any]:
    """Returns the overrides without those of studies that are not enabled, so that dropping a study is one edit."""
    groups = studies_params().model_fields
    kept = {}
    for group, own in changes.items():
        exists = group in groups and isinstance(own, dict)
        known = groups[group].annotation.model_fields if exists else {}  # type: ignore[union-attr]
        named = enabled.get(group, {})
        kept[group] = {n: v for n, v in own.items() if n in named or n not in known} if exists else own
    return kept


def _merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Returns `values` with `changes` applied: mappings are merged key by key, other values are replaced."""
    merged = dict(values)
    for key, value in changes.items():
        inner = merged.get(key)
        merged[key] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged


# Messages for errors that pydantic describes in terms of Python.
WORDS = {
    "extra_forbidden": "unknown key",
    "missing": "is missing",
    "union_tag_not_found": "`source` is missing",
    "too_short": "must not be empty",
}


class _NoRepeats(yaml.SafeLoader):
    """A YAML loader that refuses repeated keys, of which PyYAML would keep the last. Keys merged by `<<` may repeat."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Merge keys are not resolved yet, so only keys that are written twice are refused.
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.composer.ComposerError(None, None, "a key is a list or a mapping", key.start_mark)
            if key.value in seen:
                raise yaml.composer.ComposerError(None, None, f"key {key.value!r} appears twice", key.start_mark)
            seen.add(key.value)
        return node


def _reasons(error: ValidationError) -> list[str]:
    """Returns key and reason of every error, in terms of YAML."""
    reasons = []
    for detail in error.errors(include_url=False):
        at = [str(part) for part in detail["loc"]]
        if at[:1] == ["datasets"]:
            del at[2:3]  # pydantic puts the kind of source between a data set and its key
        reason = WORDS.get(detail["type"], detail["msg"].removeprefix("Value error, "))
        if detail["type"] == "model_type" and detail["input"] is None:
            reason += ", {} where it is empty"  # a mapping whose entries are all commented out is None
        if detail["type"] == "too_short" and detail["ctx"]["actual_length"] == 0 and detail["input"]:
            continue  # its only entry is wrong, which is reported already
        reasons.append(": ".join([".".join(at), reason]) if at else reason)
    return reasons


def parse_params(text: str, where: str = "params.yaml") -> Params:
    """Parses and checks the text of a params file.

    Raises ParamsError with the file, and key and reason of every error.
    """
    try:
        raw = yaml.load(text, Loader=_NoRepeats)  # noqa: S506  (a SafeLoader)
    except yaml.YAMLError as error:
        raise ParamsError(f"not YAML: {error}", where=where) from error
    except RecursionError as error:
        raise ParamsError("nested too deeply", where=where) from error
    if not isinstance(raw, dict):
        raise ParamsError("not a mapping", where=where, hint="`sparsemm params --schema` prints all keys")
    try:
        # JSON mode: lists become tuples, everything else stays strict.
        return _complete().model_validate_json(json.dumps(raw, default=str))
    except ValidationError as error:  # a subclass of ValueError
        hint = "`sparsemm params --schema` explains every key"
        raise ParamsError("; ".join(_reasons(error)), where=where, hint=hint) from error
    except (TypeError, ValueError) as error:
        raise ParamsError(f"holds a value of an unsupported kind: {error}", where=where) from error


def read_text(path: str | Path) -> str:
    """Reads the text of a params file. Raises ParamsError if it cannot be read, or is not UTF-8."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ParamsError(f"not UTF-8: {error}", where=str(path), hint="save it as UTF-8 text") from error
    except OSError as error:
        hint = "run from the repository root, or name it with --params"
        raise ParamsError(f"cannot be read: {error.strerror}", where=str(path), hint=hint) from error
    return text


def load_params(path: str | Path = "params.yaml") -> Params:
    """Reads, parses and checks a params file. Raises ParamsError with the file, and key and reason of every error."""
    return parse_params(read_text(path), str(path))


def schema() -> dict[str, Any]:
    """Returns the JSON schema of params.yaml."""
    return _complete().model_json_schema()


@cache
def _complete() -> type[Params]:
    """Returns `Params`, once the files of the studies say what their options are."""
    Params.model_rebuild(_types_namespace={"StudiesParams": studies_params()})
    return Params
