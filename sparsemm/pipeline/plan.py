"""What is stale: `dvc status`, sorted by model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import yaml

from sparsemm.errors import PipelineError
from sparsemm.params import load_params
from sparsemm.pipeline.locks import repository_locked
from sparsemm.pipeline.process import run
from sparsemm.pipeline.worktree import Line

# Made where all results come together: of no model alone, or, like `sources`, from what such stages make.
SHARED = ("download", "assemble", "align-also", "chase-also", "profile-shape", "sources", "report")


def stages(root: Path) -> tuple[str, ...]:
    """The stages of one model in the order of dvc.yaml; of a matrix, `stage@study` for each of its studies.

    Raises:
        PipelineError: if dvc.yaml cannot be read.
        ParamsError: if params.yaml is not valid.
    """
    path = root / "dvc.yaml"
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))["stages"]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise PipelineError(f"cannot be read: {error!r}", where=str(path)) from error
    result: list[str] = []
    for name, given in found.items():
        if given.get("foreach") == "${models}" and name not in SHARED:
            result.append(name)
        group = given.get("matrix", {}).get("name")
        if group is not None and name not in SHARED:
            result += [f"{name}@{study}" for study in _in_group(root, group)]
    return tuple(result)


def _in_group(root: Path, group: str) -> list[str]:
    """The studies that are made of a group, which dvc.yaml names as `${studies.<group>}`."""
    studies = getattr(load_params(root / "params.yaml").studies, group.removeprefix("${studies.").removesuffix("}"))
    return [name for name, given in studies if given is not None]


@dataclass(frozen=True)
class Plan:
    """Stages that DVC would run.

    Attributes:
        models: model key -> its stale stages; what depends on them is stale too, but not named.
        shared: stale stages that hold up no model (download@..., chase-also@..., sources@..., report).
    """

    models: dict[str, tuple[str, ...]]
    shared: tuple[str, ...]

    @property
    def downloads(self) -> tuple[str, ...]:
        """The stale stages that make data sets."""
        return tuple(name for name in self.shared if name.startswith("download@"))


def plan(root: Path = Path("."), on_line: Line | None = None) -> Plan:
    """Ask DVC what is stale; waits while someone integrates.

    Raises:
        PipelineError: if DVC fails.
        ParamsError: if params.yaml is not valid.
    """
    known, order = load_params(root / "params.yaml").models, stages(root)
    with repository_locked(root, on_line) as lock:
        printed = run(["dvc", "status", "--json"], cwd=root, keep=(lock,))
    try:
        # Warnings may stand before the one line of JSON.
        stale = json.loads(printed[printed.index("{") :])
    except ValueError as error:
        raise PipelineError(f"`dvc status --json` printed no JSON: {printed[-500:]!r}", where=str(root)) from error
    models: dict[str, list[str]] = {}
    shared = []
    for name in stale:
        stage, _, key = name.partition("@")
        if stage not in order:  # of a matrix: stage@study-key
            study, _, key = key.partition("-")
            stage = f"{stage}@{study}"
        if stage in order and key in known:
            models.setdefault(key, []).append(stage)
        elif name.partition("@")[0] in SHARED:
            shared.append(name)
    ordered = {key: tuple(s for s in order if s in models[key]) for key in known if key in models}
    return Plan(ordered, tuple(sorted(shared)))


def targets(root: Path, key: str, until: str | None = None) -> list[str]:
    """DVC's names of a model's stages, up to and with `until`; their dependencies are DVC's business.

    A checkpoint that is assembled comes first: DVC cannot know that, as not every model has such a stage.

    Raises:
        PipelineError: if dvc.yaml cannot be read.
        ParamsError: if params.yaml is not valid.
    """
    order = stages(root)
    last = order.index(until) if until is not None else len(order) - 1
    first = [f"assemble@{key}"] if key in load_params(root / "params.yaml").assembled else []
    return first + [stage + ("-" if "@" in stage else "@") + key for stage in order[: last + 1]]
