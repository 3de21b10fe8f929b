"""Writes the description of a version for MLflow's page: two numbers, a picture of the heads, links and the gate."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
from PIL import Image

from sparsemm.registry.logged import metric_name
from sparsemm.registry.manifest import FOLDER

PICTURE, REPORT = "heads.png", "report/index.html"
GATE = "### Gate"
LONGEST = 5000  # characters that MLflow stores
# Colours from the lowest score to the highest.
RAMP = np.array([[247, 251, 255], [158, 202, 225], [33, 113, 181], [8, 48, 107]], np.float64)


def draw_heads(scores: npt.NDArray[np.float64], path: Path) -> None:
    """Draws scores (L, H) as a PNG: a row of cells per layer, a column per query head, dark for high scores."""
    highest = float(scores.max()) or 1.0
    place = np.clip(scores / highest, 0.0, 1.0) * (len(RAMP) - 1)
    low = np.minimum(place.astype(np.int64), len(RAMP) - 2)
    share = (place - low)[..., None]
    colours = (RAMP[low] * (1 - share) + RAMP[low + 1] * share).round().astype(np.uint8)
    cell = max(6, min(24, 480 // max(scores.shape)))
    grid = np.full((scores.shape[0] * cell + 1, scores.shape[1] * cell + 1, 3), 255, np.uint8)
    cells = colours.repeat(cell - 1, 0).repeat(cell - 1, 1)
    rows, columns = (np.arange(n * (cell - 1), dtype=np.int64) for n in scores.shape)
    grid[np.ix_(rows + rows // (cell - 1) + 1, columns + columns // (cell - 1) + 1)] = cells
    Image.fromarray(grid).save(path, format="PNG", optimize=True)


def headlines(metrics: dict[tuple[str, int], float], method: str, budget: int, profiled: int) -> list[str]:
    """Returns two sentences, as far as they were measured: a method's accuracy at a budget, and the size of its cache.

    The accuracy is that of the task `read`, or of the first one if there is no such task, at the budget `profiled`, at
    which the cache was measured, or else at `budget`. Metrics have a name and a step
    (`sparsemm.registry.logged.measured`).
    """
    lines, method = [], metric_name(method)
    tasks = sorted({name.split("/")[1] for name, _ in metrics if name.startswith("accuracy/")})
    task = "read" if "read" in tasks else next(iter(tasks), "")
    if (f"accuracy/{task}/{method}", profiled) in metrics:
        budget = profiled
    accuracy, full = metrics.get((f"accuracy/{task}/{method}", budget)), metrics.get((f"accuracy/{task}/full", 0))
    if accuracy is not None and full is not None:
        lines.append(f"{task}: {accuracy:.3f} at {budget} slots per KV head, {full:.3f} with the full cache")
    length = max((step for name, step in metrics if name == f"cost/{method}/kept_bytes"), default=0)
    kept, whole = (metrics.get((f"cost/{name}/kept_bytes", length)) for name in (method, "full"))
    if kept is not None and whole:
        text = f"cache: {kept / whole:.1%} of the full cache's bytes at {profiled} slots per KV head"
        lines.append(f"{text}, after a prompt of {length} tokens")
    return lines


def files_page(experiment: str, run_id: str, name: str = "") -> str:
    """Returns the path of the page in MLflow's UI that shows a file of a version, or all of them."""
    return f"experiments/{experiment}/runs/{run_id}/artifacts/{FOLDER}/{name}".rstrip("/")


def describe(lines: list[str], tags: dict[str, str], experiment: str, run_id: str) -> str:
    """Returns the description of a version that was just published, in Markdown: `headlines`, picture and links."""
    links = [f"[report](#/{files_page(experiment, run_id, REPORT)})"] if tags["report"] == "yes" else []
    links += [f"[run](#/experiments/{experiment}/runs/{run_id})", f"[files](#/{files_page(experiment, run_id)})"]
    picture = f"get-artifact?path={quote(f'{FOLDER}/{PICTURE}', safe='')}&run_uuid={run_id}"
    parts = [
        *lines,
        f"![scores of the heads]({picture})",
        "Visual scores: a row per layer from the top, a column per query head, dark for high.",
        " · ".join(links),
        f"Checkpoint revision `{tags['checkpoint_revision']}`. Recipe: {tags.get('recipe', 'none')}.",
        f"{GATE}: not asked yet",
    ]
    return "\n\n".join(parts)[:LONGEST]


def with_gate(description: str, verdict: Any, against: str | None, when: str) -> str:
    """Returns the description with the gate's verdict and reasons (`Verdict`) in place of the earlier ones."""
    title = f"{GATE}: {'passed' if verdict.passed else 'refused'} on {when}"
    title += f", compared with version {against}" if against else ", no champion to compare with"
    lines = [description.partition(GATE)[0].rstrip(), title, "\n".join(f"- {line}" for line in verdict.reasons)]
    return "\n\n".join(lines)[:LONGEST]
