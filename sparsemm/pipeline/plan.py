"""Plans a run: asks `dvc status` which stages are stale, and sorts them by model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import yaml

from sparsemm.errors import PipelineError
from sparsemm.params import load_params
from sparsemm.pipeline.locks import repository_locked
from sparsemm.pipeline.process import run
from sparsemm.pipeline.worktree import Line, own_code

# Stages of the repository itself: they belong to no single model or, like `study-compared`, use outputs of such.
SHARED = ("inputs", "download", "assemble", "align-also", "chase-also", "profile-shape", "study-compared", "report")


def stages(root: Path) -> tuple[str, ...]:
    """Returns the stages of one model in the order of dvc.yaml; a matrix stage is listed as `stage@study` per study.

    Raises PipelineError if dvc.yaml cannot be read, and ParamsError if params.yaml is not valid.
    """
    path = root / "dvc.yaml"
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))["stages"]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise PipelineError(f"cannot be read: {error!r}", where=str(path)) from error
    result: list[str] = []
    for name, entry in entries.items():
        if entry.get("foreach") == "${models}" and name not in SHARED:
            result.append(name)
        group = entry.get("matrix", {}).get("name")
        if group is not None and name not in SHARED:  # `${studies.<group>}`
            studies = load_params(root / "params.yaml").studies
            in_group = getattr(studies, group.removeprefix("${studies.").removesuffix("}"))
            result += [f"{name}@{study}" for study, settings in in_group if settings is not None]
    return tuple(result)


@dataclass(frozen=True)
class Plan:
    """The stages that DVC would run."""

    # model key -> its stale stages; stages that depend on them are stale too, but not listed
    models: dict[str, tuple[str, ...]]
    # stale stages of no single model (inputs, download@..., chase-also@..., study-compared@..., report)
    shared: tuple[str, ...]

    @property
    def downloads(self) -> tuple[str, ...]:
        """Returns the stale stages that produce data sets."""
        return tuple(name for name in self.shared if name.startswith("download@"))


def plan(root: Path = Path("."), on_line: Line | None = None) -> Plan:
    """Asks DVC which stages are stale, by the present code and params. It waits while another process integrates.

    Raises PipelineError if DVC fails, and ParamsError if params.yaml is not valid.
    """
    keys, order = load_params(root / "params.yaml").models, stages(root)
    with repository_locked(root, on_line) as lock:
        # DVC compares these files, and would write them only when it runs the stages.
        run(["sparsemm", "inputs"], cwd=root, environment=own_code(root), on_line=on_line, keep=(lock,))
        output = run(["dvc", "status", "--json"], cwd=root, keep=(lock,))
    try:
        # DVC may print warnings before the line of JSON.
        stale = json.loads(output[output.index("{") :])
    except ValueError as error:
        raise PipelineError(f"`dvc status --json` printed no JSON: {output[-500:]!r}", where=str(root)) from error
    models: dict[str, list[str]] = {}
    shared = []
    for name in stale:
        stage, _, key = name.partition("@")
        if stage not in order:  # a matrix stage is named stage@study-key
            study, _, key = key.partition("-")
            stage = f"{stage}@{study}"
        if stage in order and key in keys:
            models.setdefault(key, []).append(stage)
        elif name.partition("@")[0] in SHARED:
            shared.append(name)
    ordered = {key: tuple(s for s in order if s in models[key]) for key in keys if key in models}
    return Plan(ordered, tuple(sorted(shared)))


def targets(root: Path, key: str, until: str | None = None) -> list[str]:
    """Returns DVC's names of a model's stages, up to and including `until`.

    The stage that assembles the checkpoint comes first, if the model has one. DVC does not know this dependency. Raises
    PipelineError if dvc.yaml cannot be read, and ParamsError if params.yaml is not valid.
    """
    order = stages(root)
    last = order.index(until) if until is not None else len(order) - 1
    first = [f"assemble@{key}"] if key in load_params(root / "params.yaml").assembled else []
    return first + [stage + ("-" if "@" in stage else "@") + key for stage in order[: last + 1]]
