"""What is stale: `dvc status`, sorted by model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from sparsemm.errors import PipelineError
from sparsemm.params import load_params
from sparsemm.pipeline.process import run

STAGES = ("align", "chase", "allocate", "evaluate", "profile")  # of one model, in order
SHARED = ("download", "align-also", "chase-also", "report")


@dataclass(frozen=True)
class Plan:
    """Stages that DVC would run.

    Attributes:
        models: model key -> its stale stages; what depends on them is stale too, but not named.
        shared: stale stages that hold up no model (download@..., align-also@..., chase-also@..., report).
    """

    models: dict[str, tuple[str, ...]]
    shared: tuple[str, ...]

    @property
    def downloads(self) -> tuple[str, ...]:
        """The stale stages that make data sets."""
        return tuple(name for name in self.shared if name.startswith("download@"))


def plan(root: Path = Path(".")) -> Plan:
    """Ask DVC what is stale.

    Raises:
        PipelineError: if DVC fails.
        ParamsError: if params.yaml is not valid.
    """
    known = load_params(root / "params.yaml").models
    printed = run(["dvc", "status", "--json"], cwd=root)
    try:
        # Warnings may stand before the one line of JSON.
        stale = json.loads(printed[printed.index("{") :])
    except ValueError as error:
        raise PipelineError(f"`dvc status --json` printed no JSON: {printed[-500:]!r}", where=str(root)) from error
    models: dict[str, list[str]] = {}
    shared = []
    for name in stale:
        stage, _, key = name.partition("@")
        if stage in STAGES and key in known:
            models.setdefault(key, []).append(stage)
        elif stage in SHARED:
            shared.append(name)
    ordered = {key: tuple(s for s in STAGES if s in models[key]) for key in known if key in models}
    return Plan(ordered, tuple(sorted(shared)))


def targets(key: str, until: str | None = None) -> list[str]:
    """DVC's names of a model's stages, up to and with `until`; their dependencies are DVC's business."""
    last = STAGES.index(until) if until is not None else len(STAGES) - 1
    return [f"{stage}@{key}" for stage in STAGES[: last + 1]]
