"""Runs all stale stages: plans, runs models in parallel, integrates and publishes their results."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.deployments import run_deployment
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner

from flows.artifacts import show_pictures, show_plan, show_report, show_results
from flows.stages import check_runs, model_stages, name_run
from sparsemm.errors import PipelineError
from sparsemm.params import load_params
from sparsemm.pipeline.integrate import integrate, results_branch
from sparsemm.pipeline.plan import Plan, plan, targets
from sparsemm.pipeline.worktree import check_clean, has_remote

RUNNER: Any = ThreadPoolTaskRunner(max_workers=16)  # every model that waits for a GPU slot occupies a thread
Row: TypeAlias = dict[str, Any]  # a row of the table of results


@task(name="plan", task_run_name="plan", cache_policy=NO_CACHE)
def plan_stages(root: str) -> Plan:
    """Returns the stale stages, and shows them as a table. It logs the branch that results are committed to."""
    check_clean(Path(root))
    get_run_logger().info("results are committed to branch %s (pipeline.branch)", results_branch(Path(root)))
    stale = plan(Path(root), get_run_logger().info)
    show_plan(stale)
    return stale


@task(name="model elsewhere", task_run_name="{key}", cache_policy=NO_CACHE)
def model_elsewhere(root: str, key: str, deployment: str) -> None:
    """Runs a model's stages as a flow run of their own, on any free worker of the deployment's pool.

    Raises:
        PipelineError: if that run does not complete.
    """
    run: Any = run_deployment(f"model/{deployment}", parameters={"key": key, "root": root}, poll_interval=2)
    if run.state is None or not run.state.is_completed():
        raise PipelineError(f"ended as {run.state}", where=f"flow run {run.name}")


@task(name="integrate", task_run_name="integrate: {message}", cache_policy=NO_CACHE, retries=2, retry_delay_seconds=5)
def integrate_stages(root: str, stages: list[str], message: str) -> str | None:
    """Runs `dvc repro` from the run cache and commits dvc.lock."""
    return integrate(Path(root), stages, message, pull=has_remote(Path(root)), on_line=get_run_logger().info)


@task(name="publish", task_run_name="publish {key}", cache_policy=NO_CACHE, retries=2, retry_delay_seconds=[2, 10])
def publish_model(root: str, key: str) -> dict[str, Any]:
    """Publishes the model's results in the registry, unless they were published before."""
    from sparsemm.registry.publish import publish

    params = load_params(Path(root) / "params.yaml")
    version = publish(params, key, Path(root), flow_run=str(flow_run.id))
    note = "" if version.created else " (published before)"
    get_run_logger().info("%s version %s%s", version.name, version.version, note)
    shown = {"name": version.name, "version": version.version, "created": version.created, "page": version.page}
    return shown | ({"report": version.report} if version.report else {})


@flow(log_prints=True, task_runner=RUNNER)
def pipeline(
    root: str = ".", models: list[str] | None = None, spread: str | None = None, publish: bool = True
) -> list[Row]:
    """Runs stale stages, commits dvc.lock and publishes; see `run_pipeline`.

    Raises:
        PipelineError: if a model failed, after the others are done; or if the run has crashed too often.
    """
    check_runs()
    name_run(f"pipeline {', '.join(models) if models else 'of all models'}")
    return whole(run_pipeline(root, models, spread, publish), root)


def run_pipeline(root: str, models: list[str] | None, spread: str | None, publish: bool) -> list[Row]:
    """Runs stale stages, commits dvc.lock and publishes the models, inside a flow run whose task runner is `RUNNER`.

    A model that fails does not stop the others.

    Args:
        root: the repository; its inputs must be committed, because worktrees start from the last commit.
        models: model keys; None means all in params.yaml.
        spread: name of a deployment of the flow `model` that runs each model; None runs them in this process.
        publish: whether to publish to the registry that params.yaml or MLFLOW_TRACKING_URI names.

    Returns:
        one row per model: the stages that ran, and the published version with its pages, or why it "failed".

    Raises:
        ParamsError: if params.yaml has no such model.
        PipelineError: if the stale stages cannot be determined, or results cannot be integrated.
    """
    params = load_params(Path(root) / "params.yaml")
    for key in models or ():
        params.model(key)
    stale_plan = plan_stages(root)
    chosen = [key for key in models or params.models]
    failed = _run_stale(root, stale_plan, [key for key in chosen if key in stale_plan.models], spread)
    rows: list[Row] = []
    for key in chosen:
        row: Row = {"model": key, "ran": ", ".join(stale_plan.models.get(key, ())) or "nothing"}
        if key in failed:
            row["failed"] = str(failed[key])
        elif publish:
            try:
                row |= publish_model(root, key)
            except Exception as error:  # Prefect has logged it
                row["failed"] = str(error)
        rows.append(row)
    show_results(rows)
    show_report(rows)
    show_pictures(Path(root), chosen)
    return rows


def whole(rows: list[Row], root: str) -> list[Row]:
    """Returns the rows if no model failed.

    Raises:
        PipelineError: if one did; it names all that failed.
    """
    failed = [f"{row['model']} failed: {row['failed']}" for row in rows if "failed" in row]
    if failed:
        raise PipelineError("\n".join(failed), where=root, hint="the others are done; run the flow again")
    return rows


def _run_stale(root: str, stale_plan: Plan, stale: list[str], spread: str | None) -> dict[str, Exception]:
    """Runs the stale stages, integrates their results, and returns the models that failed with their errors."""
    if stale_plan.downloads and stale:
        # Data sets are downloaded once here, and not in every worktree.
        integrate_stages(root, list(stale_plan.downloads), "Data sets")
    futures: dict[str, Any] = {
        key: model_elsewhere.submit(root, key, spread) if spread else model_stages.submit(root, key) for key in stale
    }
    errors = {key: _error(future) for key, future in futures.items()}  # waits for all of them
    failed = {key: error for key, error in errors.items() if error is not None}
    for key, error in failed.items():
        get_run_logger().error("%s: %s", key, error)
    fresh = [key for key in stale if key not in failed]
    # Without targets DVC also runs the report stage, which needs every model.
    everything = set(stale_plan.models) == set(fresh)
    if fresh or (everything and stale_plan.shared):
        stages = [] if everything else [name for key in fresh for name in targets(Path(root), key)]
        integrate_stages(root, stages, f"Results of {', '.join(fresh) or 'the pipeline'}")
    return failed


def _error(future: Any) -> Exception | None:
    future.wait()
    if future.state.is_completed():
        return None
    result = future.state.result(raise_on_failure=False)
    return result if isinstance(result, Exception) else PipelineError(f"ended as {future.state.name}")
