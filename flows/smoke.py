"""Runs the whole pipeline, smallest settings, in a copy of the last commit: `python -m flows.smoke`. CI runs it."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from flows.copies import copy_of_head, smallest

FOLDER = Path("build") / "smoke"


def main() -> None:
    """Runs the pipeline twice and promotes the result.

    Raises:
        AssertionError: if the second run does anything, or the version found is not the published one.
    """
    argparse.ArgumentParser(
        prog="python -m flows.smoke", description=__doc__, epilog="example: python -m flows.smoke"
    ).parse_args()
    folder = copy_of_head(Path("."), FOLDER, smallest)
    from sparsemm.registry.client import default_store, sqlite_uri

    # An ephemeral server without the user's settings. Prefect reads these variables when it is imported.
    for name in ("PREFECT_API_URL", "PREFECT_PROFILE", "MLFLOW_TRACKING_URI"):
        os.environ.pop(name, None)
    os.environ["PREFECT_HOME"] = str(folder.parent / "smoke-prefect")
    database = sqlite_uri(folder.parent / "smoke-prefect" / "prefect.db")
    os.environ["PREFECT_API_DATABASE_CONNECTION_URL"] = "sqlite+aiosqlite:" + database.partition(":")[2]
    os.environ["PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"] = "true"
    os.environ["PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"] = "600"  # a machine may be busy
    from prefect import flow
    from prefect.client.orchestration import get_client

    from flows.pipeline import RUNNER, run_pipeline, whole
    from flows.rechase import promote_model
    from flows.stages import GPU_SLOTS

    @flow(task_runner=RUNNER)
    def smoke() -> str:
        (row,) = whole(run_pipeline(str(folder), None, None, publish=True), str(folder))
        assert row["created"], row
        (again,) = whole(run_pipeline(str(folder), None, None, publish=True), str(folder))
        assert again["ran"] == "nothing" and again["version"] == row["version"] and not again["created"], again
        promoted = promote_model(str(folder), row["model"], row["version"])
        # At the smallest settings the scores may be too noisy for the gate, so both verdicts are accepted.
        return f"{row['name']}@{'champion' if promoted else 'candidate'}"

    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name(GPU_SLOTS, 1)
    name = smoke()
    # Another process finds the version with nothing but the registry's address.
    command = [sys.executable, "-m", "sparsemm.cli", "lookup", f"models:/{name}"]
    subprocess.run(command, env=os.environ | {"MLFLOW_TRACKING_URI": default_store(folder)}, check=True)
    assert (folder / "artifacts" / "report" / "index.html").stat().st_size > 0
    print(f"smoke: {name} was found by another process")


if __name__ == "__main__":
    main()
