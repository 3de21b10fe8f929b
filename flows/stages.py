"""Run one model's stages on this worker: a worktree, a GPU slot, and back through the run cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
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

GPU_SLOTS = "gpu"  # the global concurrency limit that `sparsemm flows deploy` makes
MOST_RUNS = 3  # of one flow run that crashes and is scheduled again


def check_runs() -> None:
    """What every flow does first: the automation starts a run that crashed again, and would do so for ever.

    Raises:
        PipelineError: if this flow run has crashed `MOST_RUNS` times.
    """
    if flow_run.run_count > MOST_RUNS:
        raise PipelineError(f"crashed {MOST_RUNS} times", where=f"flow run {flow_run.name}", hint="see its logs")


def run_stages(root: Path, key: str, until: str | None = None) -> None:
    """Reproduce a model's stages in a worktree while holding a GPU slot.

    Raises:
        PipelineError: if a stage fails.
        ParamsError: if params.yaml has no such model.
    """
    log = get_run_logger()
    entry = load_params(root / "params.yaml").model(key)
    wanted = targets(root, key, until)
    pull = has_remote(root)
    # The slot comes second: a run that waits for another one of its model must not hold it.
    with worktree(root, key, on_line=log.info) as (folder, lock):
        # A server that restarts cannot renew the lease in time; the stages go on, and GPU locks still hold.
        # A killed engine's slot is free again when its lease ends: the shortest that Prefect allows.
        lease: dict[str, Any] = {"lease_duration": 60, "raise_on_lease_renewal_failure": False}
        with concurrency(GPU_SLOTS, occupy=1, strict=True, **lease):
            with gpu(every=entry.device_map is not None) as (variables, locks):
                progress = Progress(key, len(wanted))

                def line(text: str) -> None:
                    log.info(text)
                    progress.line(text)

                reproduce(folder, wanted, pull=pull, on_line=line, keep=(lock, *locks), environment=variables)
                progress.end()
        if pull:
            run(["dvc", "push", "--run-cache", *wanted], cwd=folder, on_line=log.info, keep=(lock,))


@task(task_run_name="{key}", cache_policy=NO_CACHE, retries=1, retry_delay_seconds=5)
def model_stages(root: str, key: str, until: str | None = None) -> None:
    """`run_stages` as a task, tried twice: what ended stays in the run cache."""
    run_stages(Path(root), key, until)


@flow(flow_run_name="{key}", log_prints=True)
def model(key: str, root: str = ".", until: str | None = None) -> None:
    """The stages of one model, as a deployment: `pipeline` with spread=<its name> gives them to many workers."""
    check_runs()
    check_clean(Path(root))
    model_stages(root, key, until)


def _one(key: str, root: str, stage: str) -> None:
    check_runs()
    check_clean(Path(root))
    model_stages(root, key, stage)
    log = get_run_logger()
    wanted = targets(Path(root), key, stage)
    integrate(Path(root), wanted, f"{key}: {stage}", pull=has_remote(Path(root)), on_line=log.info)


@flow(flow_run_name="evaluate {key}", log_prints=True)
def evaluate(key: str, root: str = ".") -> None:
    """Evaluate one model, and what that needs; commits dvc.lock."""
    _one(key, root, "evaluate")


@flow(flow_run_name="profile {key}", log_prints=True)
def profile(key: str, root: str = ".") -> None:
    """Profile one model, and what that needs; commits dvc.lock."""
    _one(key, root, "profile")
