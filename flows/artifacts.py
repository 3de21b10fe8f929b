"""Creates the artifacts of a flow run in Prefect: tables, progress, pictures and a link to the report."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from sparsemm.pipeline.plan import Plan

MOST_PICTURE = 300_000  # characters of a picture that may be stored in Prefect's database


def slug(text: str) -> str:
    """Turns text into an artifact key of lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def show_plan(plan: Plan) -> None:
    """Creates a table of the stale stages."""
    rows = [{"model": key, "stale stages": ", ".join(stages)} for key, stages in plan.models.items()]
    rows += [{"model": "-", "stale stages": name} for name in plan.shared]
    create_table_artifact(rows or [{"model": "-", "stale stages": "nothing"}], key="plan", description="Stale stages")


class Progress:
    """Shows the share of a model's stages that have ended, counted from DVC's output."""

    def __init__(self, key: str, stages: int) -> None:
        self.done, self.stages = -1, stages
        artifact = create_progress_artifact(0.0, key=f"progress-{slug(key)}", description=f"stages of {key}")
        self.artifact = artifact if isinstance(artifact, UUID) else None

    def line(self, text: str) -> None:
        """Reads one line of `dvc repro` and counts it if a stage begins, is cached, or did not change."""
        if re.match(r"Running stage|Stage '.*' (is cached|didn't change)|'.*' didn't change", text):
            self.done += 1
            self._show(100.0 * max(self.done, 0) / self.stages)

    def end(self) -> None:
        """Shows that all stages have ended."""
        self._show(100.0)

    def _show(self, percent: float) -> None:
        if self.artifact is not None:
            update_progress_artifact(self.artifact, min(percent, 100.0))


def show_results(results: list[dict[str, Any]]) -> None:
    """Creates a table with the result of each model."""
    create_table_artifact(results, key="results", description="Models of this run")


def show_report(rows: list[dict[str, Any]]) -> None:
    """Creates a link to the report on MLflow's pages, if a published version of this run holds it."""
    for row in rows:
        if "report" in row:
            text = f"report, with version {row['version']} of {row['model']}"
            description = f"HTML report on the pages of the registry: {row['report']}"
            create_link_artifact(row["report"], link_text=text, key="report", description=description)
            return


def show_pictures(root: Path, keys: list[str]) -> None:
    """Shows the first picture of each model's explore stage, under the artifact key picture-<model>."""
    for key in keys:
        path = root / "artifacts" / "explorer" / f"{key}.json"
        pictures = (json.loads(path.read_text(encoding="utf-8")).get("method") or []) if path.exists() else []
        if pictures and len(pictures[0]["image"]) <= MOST_PICTURE:
            description = f"{key}: {pictures[0]['text']}"
            create_image_artifact(pictures[0]["image"], key=f"picture-{slug(key)}", description=description)
