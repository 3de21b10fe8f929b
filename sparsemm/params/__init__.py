"""params.yaml, typed and strict: the only configuration there is."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from sparsemm.errors import ParamsError
from sparsemm.params.base import Strict
from sparsemm.params.datasets import DatasetParams, may_share
from sparsemm.params.models import ModelParams, WatchParams
from sparsemm.params.registry import RegistryParams
from sparsemm.params.stages import AllocateParams, ChaseParams, EvaluateParams, ProfileParams, RobustnessParams
from sparsemm.params.studies import StudiesParams

__all__ = ["ModelParams", "Params", "WatchParams", "load_params", "parse_params", "schema"]


class Params(Strict):
    """The whole of params.yaml."""

    models: dict[str, ModelParams]
    datasets: dict[str, DatasetParams]
    chase: ChaseParams
    robustness: dict[str, RobustnessParams] = Field({}, description="further data sets to chase over, by key")
    allocate: AllocateParams
    evaluate: EvaluateParams
    profile: ProfileParams
    studies: StudiesParams = StudiesParams.model_validate({})
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
            self.allocate.window, self.datasets[self.evaluate.dataset].samples, evaluated.source == "synthetic"
        )
        if reason is not None:
            raise ValueError(f"studies.{reason}")
        if self.studies.derived.cost is not None and self.profile.budget not in self.allocate.budgets:
            raise ValueError(f"studies.cost: profile.budget {self.profile.budget} is not under allocate.budgets")
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
            hint = (
                ", {} where it is empty" if one["type"] == "model_type" and one["input"] is None else ""
            )  # what is left of a mapping of comments
            reasons.append(f"{key}: {one['msg'].removeprefix('Value error, ')}{hint}")
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
