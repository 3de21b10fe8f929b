"""params.yaml, typed and strict: the only configuration there is."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from sparsemm.errors import ParamsError
from sparsemm.params.base import Strict, check_key
from sparsemm.params.datasets import DatasetParams, may_share
from sparsemm.params.models import OVERRIDDEN, AssembledParams, ModelParams, WatchParams, without_folder
from sparsemm.params.registry import RegistryParams
from sparsemm.params.stages import AllocateParams, ChaseParams, EvaluateParams, ProfileParams, RobustnessParams
from sparsemm.params.studies import StudiesParams

__all__ = ["ModelParams", "Params", "WatchParams", "load_params", "parse_params", "schema"]


class Params(Strict):
    """The whole of params.yaml."""

    models: dict[str, ModelParams]
    datasets: dict[str, DatasetParams]
    assembled: dict[str, AssembledParams] = Field({}, description="checkpoints put together in artifacts/checkpoints")
    chase: ChaseParams
    robustness: dict[str, RobustnessParams] = Field({}, description="further data sets to chase over, by key")
    allocate: AllocateParams
    evaluate: EvaluateParams
    profile: ProfileParams
    studies: StudiesParams = StudiesParams.model_validate({})
    watch: dict[str, WatchParams] = Field({}, description="model key -> source that `rechase` polls")
    registry: RegistryParams = RegistryParams.model_validate({})

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
        if {"read", "qa"} & set(self.evaluate.tasks) and self.evaluate.samples > self.datasets[
            self.evaluate.dataset
        ].samples:
            raise ValueError(f"evaluate.samples is more than datasets.{self.evaluate.dataset}.samples")
        chased, evaluated = self.datasets[self.chase.dataset], self.datasets[self.evaluate.dataset]
        reason = may_share(chased, evaluated)
        if reason is not None:
            raise ValueError(f"chase.dataset and evaluate.dataset {reason}")
        if "qa" in self.evaluate.tasks and evaluated.source != "synthetic":
            raise ValueError(f"evaluate.tasks: qa asks about synthetic pages only, {self.evaluate.dataset} has others")
        if self.profile.budget < self.allocate.window:
            raise ValueError(f"profile.budget {self.profile.budget} is below allocate.window {self.allocate.window}")
        reason = self.studies.problem(
            self.allocate.window, evaluated.samples, evaluated.source == "synthetic", bool(self.robustness)
        )
        if reason is not None:
            raise ValueError(f"studies.{reason}")
        if self.studies.derived.cost is not None and self.profile.budget not in self.allocate.budgets:
            raise ValueError(f"studies.cost: profile.budget {self.profile.budget} is not under allocate.budgets")
        budget = self.registry.gate.reference_budget
        if budget is not None and budget not in self.allocate.budgets:
            raise ValueError(f"registry.gate.reference_budget {budget} is not under allocate.budgets")
        return self

    @model_validator(mode="after")
    def _overrides_fit(self) -> Self:
        for key, entry in self.models.items():
            for name in ("chase", "evaluate"):  # dvc.yaml names their data sets as dependencies
                if "dataset" in getattr(entry, name):
                    raise ValueError(f"models.{key}.{name}.dataset: the data set is the same for all models")
            try:
                self.of(key)
            except ValidationError as error:
                raise ValueError("; ".join(f"models.{key}.{reason}" for reason in _reasons(error))) from error
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

    def of(self, key: str) -> Params:
        """These params with what the entry of one model overrides; asked again, the same.

        Raises:
            ParamsError: if there is no such model.
            ValidationError: if the overridden params are not valid, which those of a params file always are.
        """
        entry = self.model(key)
        changes = {name: getattr(entry, name) for name in OVERRIDDEN if getattr(entry, name)}
        if not changes:
            return self
        raw = self.model_dump(mode="json", exclude_unset=True)
        raw["models"] = {key: {k: v for k, v in raw["models"][key].items() if k not in OVERRIDDEN}}
        own = Params.model_validate_json(json.dumps(_merged(raw, changes)))
        return self.model_copy(
            update={name: getattr(own, name) for name in OVERRIDDEN} | {"models": self.models | own.models}
        )

    def check_folders(self, keys: Iterable[str], where: str = "params.yaml") -> None:
        """Check that local checkpoints are there; hub ids are not asked for.

        Args:
            keys: of the models to look at; unknown ones are left out.
            where: the file, for messages.

        Raises:
            ParamsError: naming every folder that is not.
        """
        gone = {key: self.models[key].checkpoint for key in keys if key in self.models}
        gone = {key: folder for key, folder in gone.items() if without_folder(folder)}
        if gone:
            what = "; ".join(f"models.{key}.checkpoint: no folder {folder}" for key, folder in gone.items())
            key = next(iter(gone))
            hint = f"correct the path, fetch it again, or `sparsemm models remove {key}`"
            if key in self.assembled:
                hint = f"`sparsemm assemble {key}` makes it"
            raise ParamsError(what, where=where, hint=hint)

    def over(self, dataset: str | None) -> Params:
        """These params with another data set under `chase`, and the prompt that fits it; None changes nothing.

        Raises:
            ParamsError: if the data set is not under `robustness`.
        """
        if dataset is None:
            return self
        if dataset not in self.robustness:
            known = ", ".join(self.robustness) or "none yet"
            raise ParamsError(f"no data set {dataset!r}", where="params.yaml: robustness", hint=f"known: {known}")
        prompt = self.robustness[dataset].prompt or self.chase.prompt
        chase = self.chase.model_copy(update={"dataset": dataset, "prompt": prompt})
        return self.model_copy(update={"chase": chase})


def _merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`values` with `changes`; mappings are merged key by key, everything else is replaced."""
    merged = dict(values)
    for key, value in changes.items():
        inner = merged.get(key)
        merged[key] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged


# What pydantic says in words of Python.
WORDS = {
    "extra_forbidden": "unknown key",
    "missing": "is missing",
    "union_tag_not_found": "`source` is missing",
    "too_short": "must not be empty",
}


class _NoRepeats(yaml.SafeLoader):
    """YAML without the rule that of two equal keys the last one silently wins; what `<<` brings may be replaced."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Before merge keys are resolved, so that only what is written twice counts.
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
    """Key and reason of everything that is wrong, as a writer of YAML would say it."""
    reasons = []
    for one in error.errors(include_url=False):
        at = [str(part) for part in one["loc"]]
        if at[:1] == ["datasets"]:
            del at[2:3]  # the kind of source that pydantic puts between a data set and its key
        reason = WORDS.get(one["type"], one["msg"].removeprefix("Value error, "))
        if one["type"] == "model_type" and one["input"] is None:
            reason += ", {} where it is empty"  # what is left of a mapping of comments
        if one["type"] == "too_short" and one["ctx"]["actual_length"] == 0 and one["input"]:
            continue  # its only entry is wrong, which has been said
        reasons.append(": ".join([".".join(at), reason]) if at else reason)
    return reasons


def parse_params(text: str, where: str = "params.yaml") -> Params:
    """Parse and check the text of a params file.

    Raises:
        ParamsError: with file, key and reason of everything that is wrong.
    """
    try:
        raw = yaml.load(text, Loader=_NoRepeats)  # noqa: S506  (a SafeLoader)
    except yaml.YAMLError as error:
        raise ParamsError(f"not YAML: {error}", where=where) from error
    except RecursionError as error:
        raise ParamsError("nested too deeply", where=where) from error
    if not isinstance(raw, dict):
        raise ParamsError("not a mapping", where=where, hint="`sparsemm params --schema` prints what belongs there")
    try:
        # JSON mode: lists become tuples, everything else stays strict.
        return Params.model_validate_json(json.dumps(raw, default=str))
    except ValidationError as error:  # before ValueError, which it is
        hint = "`sparsemm params --schema` explains every key"
        raise ParamsError("; ".join(_reasons(error)), where=where, hint=hint) from error
    except (TypeError, ValueError) as error:
        raise ParamsError(f"holds what no key takes: {error}", where=where) from error


def read_text(path: str | Path) -> str:
    """The text of a params file.

    Raises:
        ParamsError: if it cannot be read, or is not UTF-8.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ParamsError(f"not UTF-8: {error}", where=str(path), hint="save it as UTF-8 text") from error
    except OSError as error:
        what = f"cannot be read: {error.strerror}"
        raise ParamsError(
            what, where=str(path), hint="run from the repository root, or name it with --params"
        ) from error
    return text


def load_params(path: str | Path = "params.yaml") -> Params:
    """Read, parse and check a params file.

    Raises:
        ParamsError: with file, key and reason of everything that is wrong.
    """
    return parse_params(read_text(path), str(path))


def schema() -> dict[str, Any]:
    """JSON schema of params.yaml."""
    return Params.model_json_schema()
