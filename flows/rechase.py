"""Handles new checkpoints: adopts them, runs their stages, publishes, and promotes versions that pass the gate."""

from __future__ import annotations

from pathlib import Path

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event

from flows.artifacts import slug
from flows.pipeline import RUNNER, Row, run_pipeline, whole
from flows.stages import REFUSED, REFUSED_PREFIX, check_runs, name_run
from sparsemm.errors import SparseMMError, WatchError
from sparsemm.params import load_params
from sparsemm.pipeline.adopt import adopt
from sparsemm.watch import Arrival

EVENT_PREFIX = "checkpoint."  # prefix of the resource ids in events


@task(task_run_name="look for {key}", cache_policy=NO_CACHE, retries=2, retry_delay_seconds=10)
def look(root: str, key: str) -> Arrival | None:
    """Checks a watched source, and writes and commits the entry of a new checkpoint."""
    log = get_run_logger()
    arrival = adopt(Path(root), key, on_line=log.info)
    log.info("%s: %s", key, f"revision {arrival.revision}" if arrival else "nothing new")
    return arrival


@task(task_run_name="promote {key}", cache_policy=NO_CACHE, retries=2, retry_delay_seconds=5)
def promote_model(root: str, key: str, version: str) -> bool:
    """Promotes a version if it passes the gate, shows the gate's reasons, and tells whether it is champion now."""
    from sparsemm.registry.promote import promote

    promotion = promote(load_params(Path(root) / "params.yaml"), key, Path(root), version=version)
    verdict = promotion.verdict
    if verdict is None:  # it was champion before
        return True
    title = f"# {key} version {version}: {'champion' if verdict.passed else 'stays candidate'}"
    text = "\n".join([title, "", *(f"- {reason}" for reason in verdict.reasons)])
    create_markdown_artifact(text, key=f"gate-{slug(key)}")
    get_run_logger().info(text)
    if not verdict.passed and not promotion.repeated:  # an automation of `sparsemm flows deploy` sends an alert
        resource = {"prefect.resource.id": f"{REFUSED_PREFIX}{key}", "prefect.resource.name": key}
        failed = "; ".join(reason for reason in verdict.reasons if reason.startswith("FAIL"))
        emit_event(REFUSED, resource, payload={"version": version, "reasons": failed})
    return verdict.passed


@flow(log_prints=True, task_runner=RUNNER)
def rechase(watch: str | None = None, root: str = ".", spread: str | None = None) -> list[Row]:
    """Checks watched sources, and publishes and judges the results of new checkpoints.

    A run also does what a stopped one left undone: stale stages of watched models run, and their results are
    published and judged, whether or not a checkpoint arrived just now. If nothing is stale, nothing runs.

    Args:
        watch: model key under `watch` in params.yaml, or an event's resource id checkpoint.<key>; None means all.
        root: the repository.
        spread: as in `pipeline`.

    Returns:
        one row per watched model: the stages that ran, the published version, and whether it is champion now.

    Raises:
        PipelineError: if a model failed, after the others are done; or if the run has crashed too often.
        WatchError: if a source could not be reached, after the others are done.
    """
    check_runs()
    path = Path(root) / "params.yaml"
    keys = list(load_params(path).watch) if watch is None else [watch.removeprefix(EVENT_PREFIX)]
    name_run(f"rechase {', '.join(keys)}")
    errors, arrived = [], []
    for key in keys:
        try:
            if arrival := look(root, key):
                arrived.append(f"{key} {arrival.revision[:12]}")
        except SparseMMError as error:  # the other sources are checked nevertheless
            get_run_logger().error("%s", error)
            errors.append(str(error))
    if arrived:
        name_run(f"rechase {', '.join(arrived)}")
    entries = load_params(path).models
    models = [key for key in keys if key in entries]
    rows = run_pipeline(root, models, spread, publish=True) if models else []
    if not arrived:  # what a stopped run left undone
        done = [row["model"] for row in rows if row["ran"] != "nothing" or row.get("created")]
        revisions = [f"{key} {(entries[key].revision or '')[:12]}".strip() for key in done]
        name_run(f"rechase {', '.join(revisions)}" if done else f"rechase {', '.join(keys)}: nothing new")
    for row in (row for row in rows if "failed" not in row):
        try:
            row["champion"] = promote_model(root, row["model"], row["version"])
        except Exception as error:  # Prefect has logged it
            row["failed"] = str(error)
    whole(rows, root)
    if errors:
        raise WatchError("; ".join(errors))
    return rows
