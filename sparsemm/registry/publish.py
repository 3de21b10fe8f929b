"""Publishes the results of a model's stages as one version in the registry, completely or not at all, and only once."""

from __future__ import annotations

import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from sparsemm.errors import RegistryError
from sparsemm.files import sha256_file, write_json
from sparsemm.params import Params
from sparsemm.registry import artifacts, manifest
from sparsemm.registry.client import answering, connect, ignoring, model_name, page, registry_uri, sqlite_file
from sparsemm.registry.contents import gather, recipe_name, table_name
from sparsemm.registry.description import PICTURE, REPORT, describe, draw_heads, files_page, headlines
from sparsemm.registry.gate import METHOD
from sparsemm.registry.lease import Lease, lease
from sparsemm.registry.lockfile import STALE, check_params, read_stages
from sparsemm.registry.logged import flat_params, measured
from sparsemm.registry.provenance import provenance

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CANDIDATE = "candidate"
PER_REQUEST = 100  # params that log_batch accepts in a request (it accepts 1000 metrics)


@dataclass(frozen=True)
class Published:
    """A version of visual-heads.<key>."""

    name: str  # registered model
    version: str  # version number
    run_id: str  # run that holds the version's files
    stage_hash: str  # identity of the results, see `Stages.hash`
    created: bool  # False if the same results had been published before
    uri: str  # address of the registry
    report: str | None  # address of the report among the version's files in MLflow's UI; None if it is not among them

    @property
    def page(self) -> str:
        """Returns the address of the version's page in MLflow's UI."""
        return page(self.uri, f"models/{self.name}/versions/{self.version}")


def publish(
    params: Params, key: str, root: Path = Path("."), *, tracking_uri: str | None = None, flow_run: str | None = None
) -> Published:
    """Publishes one model's results and makes the version the candidate.

    It creates a run, logs params and metrics, uploads the files, reads them back and compares their checksums,
    finishes the run, and only then creates the version, in one request with all its tags. An interrupted publication
    leaves an unfinished run that no lookup finds; the next publication of the model removes it and starts again.

    The same results are published once: publishers of a model take turns (`lease`) and first look for a version with
    the same stage hash. MLflow has no unique constraint on tags, and its transport may send a request twice, so each
    publisher looks again afterwards. Version numbers are unique and increase, so the later of two publishers sees the
    earlier version, and the lowest number is kept.

    The stages ran with `params`, and the files below `root` must have the hashes in its dvc.lock; `flow_run` is an id
    for the provenance. Raises RegistryError if a stage never ran or is stale, its files were edited, or the registry
    refuses, and RegistryUnreachable if the registry is down. Nothing was changed locally then; publish again later.
    """
    name, model = model_name(key), params.model(key)
    stages = read_stages(root, key)
    check_params(stages, params, root)
    with tempfile.TemporaryDirectory(prefix="sparsemm-") as temporary:
        folder = Path(temporary) / manifest.FOLDER
        table = gather(stages, params, key, root, folder)
        if model.revision not in (None, table.header["revision"]):
            raise RegistryError(f"scores are of revision {table.header['revision']}", where=key, hint=STALE)
        metrics, machine = measured(key, folder)
        draw_heads(table.scores, folder / PICTURE)
        origin = provenance(stages, table, machine, root, flow_run)
        write_json(folder / "provenance.json", origin)
        commit = origin["git"]["commit"][:8] if origin["git"] else "unknown"
        source = f"checkpoint {str(table.header['revision'])[:8]}, commit {commit}"  # in the name of the run
        listed = manifest.build(folder, model=name, key=key, stage_hash=stages.hash, table=table_name(key))
        write_json(folder / manifest.NAME, listed)
        tags = {
            "key": key,
            "stage_hash": stages.hash,
            "checkpoint_revision": str(table.header["revision"]),
            "fingerprint": table.header["fingerprint"],
            "note": model.note,
            "table_sha256": listed["files"][listed["table"]]["sha256"],
            "manifest_sha256": sha256_file(folder / manifest.NAME),
            "report": "yes" if (folder / REPORT).is_file() else "no",
        }
        if table.recipe is not None:
            tags["recipe_sha256"] = listed["files"][recipe_name(key)]["sha256"]
            tags["recipe"] = "; ".join(f"{name}: {one.name}" for name, one in table.recipe.scenarios.items())
        uri = registry_uri(tracking_uri, params, root)
        client = connect(uri, create=True)
        with answering(uri), lease(client, uri, name) as held:
            version = _only_version(client, name, stages.hash)
            created = version is None
            if version is None:
                experiment = _experiment(client, uri, params.registry.experiment)
                # Unfinished runs of this model: nobody is still writing one, because this process holds the lease.
                for run in client.search_runs([experiment], f"tags.key = '{key}' and tags.published = 'no'"):
                    client.delete_run(run.info.run_id)
                run_id = _run(held, experiment, f"{key}: {source}", tags, folder, flat_params(params, key), metrics)
                own = params.of(key)
                budget = params.registry.gate.reference_budget or max(own.allocate.budgets)
                lines = headlines(metrics, METHOD, budget, own.profile.budget)
                text = describe(lines, tags, experiment, run_id)
                version = _version(held, name, run_id, tags, text)
                if created := version.run_id == run_id:
                    client.update_run(run_id, name=f"{key} v{version.version}: {source}")
            client.set_registered_model_alias(name, CANDIDATE, version.version)
            run_id, report = str(version.run_id), None
            if version.tags.get("report") == "yes":
                report = page(uri, files_page(client.get_run(run_id).info.experiment_id, run_id, REPORT))
    return Published(name, str(version.version), run_id, stages.hash, created, uri, report)


def _only_version(client: MlflowClient, name: str, stage_hash: str) -> ModelVersion | None:
    """Returns the version with this stage hash, or None. If there are several, all but the lowest are deleted."""
    versions = sorted(
        client.search_model_versions(f"name='{name}' and tags.stage_hash='{stage_hash}'"), key=lambda v: int(v.version)
    )
    for duplicate in versions[1:]:
        with ignoring("RESOURCE_DOES_NOT_EXIST"):  # the other publisher deleted it first
            client.delete_model_version(name, duplicate.version)
    return versions[0] if versions else None


def _experiment(client: MlflowClient, uri: str, name: str) -> str:
    store = sqlite_file(uri)
    location = None if store is None else artifacts.LOCATION  # a server chooses it itself
    if client.get_experiment_by_name(name) is None:
        with ignoring("RESOURCE_ALREADY_EXISTS"):
            client.create_experiment(name, artifact_location=location)
    experiment = client.get_experiment_by_name(name)
    if experiment is None or experiment.lifecycle_stage != "active":
        hint = "restore it, or set another registry.experiment in params.yaml"
        raise RegistryError("the experiment was deleted", where=name, hint=hint)
    if store is None and urlsplit(experiment.artifact_location).scheme in ("", "file"):
        hint = "set a new registry.experiment in params.yaml"
        raise RegistryError("the server's experiment keeps files on local disks", where=name, hint=hint)
    return str(experiment.experiment_id)


def _run(
    held: Lease,
    experiment: str,
    name: str,
    tags: dict[str, str],
    folder: Path,
    params: dict[str, str],
    metrics: dict[tuple[str, int], float],
) -> str:
    """Creates a finished run, whose files have been read back and checked, and returns its id."""
    from mlflow.entities import Metric, Param
    from mlflow.exceptions import MlflowException

    client = held.client
    run_id: str = client.create_run(experiment, tags={**tags, "published": "no"}, run_name=name).info.run_id
    try:
        now = int(time.time() * 1000)
        texts = [Param(name, value) for name, value in params.items()]
        numbers = [Metric(name, value, now, step) for (name, step), value in metrics.items()]
        for start in range(0, max(len(texts), len(numbers)), PER_REQUEST):
            part = slice(start, start + PER_REQUEST)
            client.log_batch(run_id, params=texts[part], metrics=numbers[part])
        held.check()  # the upload and the download may each take as long as the lease lasts
        artifacts.upload(client, run_id, folder, manifest.FOLDER)
        held.check()
        with tempfile.TemporaryDirectory(prefix="sparsemm-") as back:
            manifest.fetch(client, run_id, tags["manifest_sha256"], None, Path(back))
    except BaseException:
        with suppress(MlflowException):  # the registry itself may have failed
            client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id, "FINISHED")
    return run_id


def _version(held: Lease, name: str, run_id: str, tags: dict[str, str], text: str) -> ModelVersion:
    client = held.client
    with ignoring("RESOURCE_ALREADY_EXISTS"):
        client.create_registered_model(name)
    held.check()
    source = f"runs:/{run_id}/{manifest.FOLDER}"
    client.create_model_version(name, source, run_id, tags=tags, description=text, await_creation_for=0)
    version = _only_version(client, name, tags["stage_hash"])
    if version is None:
        raise RegistryError("the version disappeared after it was created", where=name, hint="publish again")
    if version.run_id == run_id:
        client.set_tag(run_id, "published", f"version {version.version}")
    else:
        client.delete_run(run_id)
    return version
