"""Runs one model's stages on this worker, in a worktree and with a GPU slot. Results return through DVC's run cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.concurrency.sync import concurrency
from prefect.runtime import flow_run

from flows.artifacts import Progress
from sparsemm.errors import PipelineError
from sparsemm.params import load_params
from sparsemm.pipeline.gpus import gpu
from sparsemm.pipeline.integrate import integrate
from sparsemm.pipeline.plan import targets
from sparsemm.pipeline.process import run
from sparsemm.pipeline.worktree import check_clean, has_remote, reproduce, worktree

GPU_SLOTS = "gpu"  # the global concurrency limit that `sparsemm flows deploy` creates
REFUSED, REFUSED_PREFIX = "gate.refused", "sparsemm.model."  # event of a refused candidate, and its resource
MOST_RUNS = 3  # times that a flow run may start, if it crashes


def check_runs() -> None:
    """Stops a flow run that crashes repeatedly, because the automation would restart it forever. Every flow calls it.

    Raises:
        PipelineError: if this flow run has crashed `MOST_RUNS` times.
    """
    if flow_run.run_count > MOST_RUNS:
        raise PipelineError(f"crashed {MOST_RUNS} times", where=f"flow run {flow_run.name}", hint="see its logs")


def name_run(name: str) -> None:
    """Renames the current flow run, for what is known only once it runs, such as the revision of a checkpoint."""
    with get_client(sync_client=True) as client:
        client.update_flow_run(UUID(str(flow_run.id)), name=name)


def run_stages(root: Path, key: str, until: str | None = None) -> None:
    """Reproduces a model's stages in a worktree while holding a GPU slot.

    Raises:
        PipelineError: if a stage fails.
        ParamsError: if params.yaml has no such model.
    """
    log = get_run_logger()
    entry = load_params(root / "params.yaml").model(key)
    stages = targets(root, key, until)
    pull = has_remote(root)
    # The slot is taken after the worktree, so that a run that waits for another run of its model holds none.
    with worktree(root, key, on_line=log.info) as (folder, lock):
        # While the server restarts, the lease cannot be renewed; the stages continue, and GPU locks still hold.
        # A killed engine's slot is free again when its lease ends, so it is the shortest that Prefect allows.
        lease: dict[str, Any] = {"lease_duration": 60, "raise_on_lease_renewal_failure": False}
        with concurrency(GPU_SLOTS, occupy=1, strict=True, **lease):
            with gpu(every=entry.device_map is not None) as (variables, locks):
                progress = Progress(key, len(stages))

                def line(text: str) -> None:
                    log.info(text)
                    progress.line(text)

                reproduce(folder, stages, pull=pull, on_line=line, keep=(lock, *locks), environment=variables)
                progress.end()
        if pull:
            run(["dvc", "push", "--run-cache", *stages], cwd=folder, on_line=log.info, keep=(lock,))


@task(task_run_name="{key}", cache_policy=NO_CACHE, retries=1, retry_delay_seconds=5)
def model_stages(root: str, key: str, until: str | None = None) -> None:
    """Runs `run_stages` as a task that is retried once. Finished stages stay in the run cache."""
    run_stages(Path(root), key, until)


@flow(flow_run_name="stages of {key}", log_prints=True)
def model(key: str, root: str = ".", until: str | None = None) -> None:
    """Runs the stages of one model. As a deployment it lets `pipeline` with spread=<its name> use many workers."""
    check_runs()
    check_clean(Path(root))
    model_stages(root, key, until)


def _run_until(key: str, root: str, stage: str) -> None:
    check_runs()
    check_clean(Path(root))
    model_stages(root, key, stage)
    log = get_run_logger()
    stages = targets(Path(root), key, stage)
    integrate(Path(root), stages, f"{key}: {stage}", pull=has_remote(Path(root)), on_line=log.info)


@flow(flow_run_name="evaluate {key}", log_prints=True)
def evaluate(key: str, root: str = ".") -> None:
    """Runs a model's stages up to evaluate, and commits dvc.lock."""
    _run_until(key, root, "evaluate")


@flow(flow_run_name="profile {key}", log_prints=True)
def profile(key: str, root: str = ".") -> None:
    """Runs a model's stages up to profile, and commits dvc.lock."""
    _run_until(key, root, "profile")
