"""Describes the origin of a publication: commit, dvc.lock, stages, flow run, packages and machine."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

from sparsemm.registry.lockfile import Stages
from sparsemm.scores import ScoreTable

PACKAGES = ("sparsemm", "torch", "transformers", "tokenizers", "numpy", "safetensors", "lmms-eval", "dvc", "mlflow")
MEASURED = ("device", "threads", "torch", "transformers")
PROCESSORS = ("x86_64", "AMD64", "aarch64", "arm64")  # what the profile stage writes where there is no GPU


def provenance(
    stages: Stages, table: ScoreTable, machine: dict[str, Any], root: Path, flow_run: str | None
) -> dict[str, Any]:
    """Returns the content of provenance.json as plain JSON, without environment variables, addresses or user names.

    `machine` is artifacts/profile/<key>.json: `gpu` and `measured_with` describe the machine that profiled the model,
    which need not be the one that publishes.
    """
    device = machine.get("device")
    return {
        "checkpoint": table.header["model"],
        "checkpoint_revision": table.header["revision"],
        "fingerprint": table.header["fingerprint"],
        "git": _git(root),
        "dvc_lock_sha256": stages.sha256,
        "dvc_stages": stages.entries,
        "stage_hash": stages.hash,
        "flow_run": flow_run,
        "packages": {name: version(name) for name in PACKAGES if any(distributions(name=name))},
        "python": platform.python_version(),
        "gpu": None if device in PROCESSORS else device,
        "measured_with": {name: machine.get(name) for name in MEASURED},
    }


def _git(root: Path) -> dict[str, Any] | None:
    """Returns the commit, and whether tracked files differ from it; None outside a repository."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.CalledProcessError):
        return None
