"""Publish what the stages of a model wrote as one version in the registry: whole or not at all, and once."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from sparsemm.errors import RegistryError
from sparsemm.files import sha256_file, write_json
from sparsemm.params import Params
from sparsemm.registry import manifest
from sparsemm.registry.client import answering, connect, is_code, model_name, registry_uri, sqlite_file
from sparsemm.registry.contents import gather, table_name
from sparsemm.registry.lease import Lease, lease
from sparsemm.registry.lockfile import STALE, check_params, read_stages
from sparsemm.registry.logged import flat_params, measured
from sparsemm.registry.provenance import provenance

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CANDIDATE = "candidate"
PER_REQUEST = 100  # of log_batch: params; metrics may be 1000


@dataclass(frozen=True)
class Published:
    """A version of visual-heads.<key>.

    Attributes:
        name, version: of the registered model.
        run_id: the run that holds its files.
        stage_hash: identity of the results, see `Stages.hash`.
        created: False if the same results had been published before.
    """

    name: str
    version: str
    run_id: str
    stage_hash: str
    created: bool


def publish(
    params: Params,
    key: str,
    root: Path = Path("."),
    *,
    tracking_uri: str | None = None,
    flow_run: str | None = None,
) -> Published:
    """Publish one model's results and make the version the candidate.

    Order: run, params and metrics, files, read back and compared with their checksums, run finished, and only then
    the version, in one request with all its tags. Whatever is cut off before leaves an unfinished run that nobody
    can look up; the next publication of the model removes it and starts again.

    Once: publishers of a model take turns (`lease`), and look for a version of the same stage hash first. MLflow has
    no unique constraint on tags, and its transport may send a request twice, so each looks again afterwards: version
    numbers are unique and rise, so the later of two creators sees the earlier, and the lowest number is kept.

    Args:
        params: must be those the stages ran with.
        key: model key.
        root: folder with dvc.lock and artifacts/; its files must have the hashes dvc.lock names.
        tracking_uri: see `registry_uri`.
        flow_run: id of the flow run, for provenance.

    Raises:
        RegistryError: if a stage never ran, is stale, or its files were edited; or the registry refuses.
        RegistryUnreachable: if the registry is down; nothing here is changed, publish again later.
    """
    name, model = model_name(key), params.model(key)
    stages = read_stages(root, key)
    check_params(stages, params)
    with tempfile.TemporaryDirectory(prefix="sparsemm-") as temporary:
        folder = Path(temporary) / manifest.FOLDER
        table = gather(stages, params, key, root, folder)
        if model.revision not in (None, table.header["revision"]):
            raise RegistryError(f"scores are of revision {table.header['revision']}", where=key, hint=STALE)
        metrics, machine = measured(key, folder)
        write_json(folder / "provenance.json", provenance(stages, table, machine, root, flow_run))
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
        }
        uri = registry_uri(tracking_uri, params, root)
        client = connect(uri, create=True)
        with answering(uri), lease(client, uri, name) as held:
            version = _only_version(client, name, stages.hash)
            created = version is None
            if version is None:
                experiment = _experiment(client, uri, params.registry.experiment)
                _remove_unfinished(client, experiment, key)
                run_id = _run(held, experiment, name, tags, folder, flat_params(params, key), metrics)
                version = _version(held, name, run_id, tags)
                created = version.run_id == run_id
            client.set_registered_model_alias(name, CANDIDATE, version.version)
    return Published(name, str(version.version), str(version.run_id), stages.hash, created)


def _only_version(client: MlflowClient, name: str, stage_hash: str) -> ModelVersion | None:
    """The version of this stage hash; of several the lowest number, and the others are deleted."""
    from mlflow.exceptions import MlflowException

    found = sorted(
        client.search_model_versions(f"name='{name}' and tags.stage_hash='{stage_hash}'"), key=lambda v: int(v.version)
    )
    for later in found[1:]:
        try:
            client.delete_model_version(name, later.version)
        except MlflowException as error:
            if not is_code(error, "RESOURCE_DOES_NOT_EXIST"):  # the other publisher was faster
                raise
    return found[0] if found else None


def _experiment(client: MlflowClient, uri: str, name: str) -> str:
    from mlflow.exceptions import MlflowException

    store = sqlite_file(uri)
    # A server decides itself where files go; without one they lie beside the database.
    location = None if store is None else (store.parent.resolve() / "files").as_uri()
    if client.get_experiment_by_name(name) is None:
        try:
            client.create_experiment(name, artifact_location=location)
        except MlflowException as error:
            if not is_code(error, "RESOURCE_ALREADY_EXISTS"):
                raise
    found = client.get_experiment_by_name(name)
    if found is None or found.lifecycle_stage != "active":
        raise RegistryError("the experiment was deleted", where=name, hint="restore it, or name another in params")
    if store is None and urlsplit(found.artifact_location).scheme in ("", "file"):
        hint = "name a new one in registry.experiment"
        raise RegistryError("the server's experiment keeps files on local disks", where=name, hint=hint)
    return str(found.experiment_id)


def _remove_unfinished(client: MlflowClient, experiment: str, key: str) -> None:
    """Delete runs of this model that no version came of: under the lease nobody is still writing one."""
    runs = client.search_runs([experiment], f"tags.key = '{key}' and tags.published = 'no'")
    for run in runs:
        client.delete_run(run.info.run_id)


def _run(
    held: Lease,
    experiment: str,
    name: str,
    tags: dict[str, str],
    folder: Path,
    params: dict[str, str],
    metrics: dict[str, float],
) -> str:
    """A finished run whose files have been read back."""
    from mlflow.entities import Metric, Param
    from mlflow.exceptions import MlflowException

    client = held.client
    run_id: str = client.create_run(experiment, tags={**tags, "published": "no"}, run_name=name).info.run_id
    try:
        now = int(time.time() * 1000)
        for part in _parts([Param(k, v) for k, v in params.items()]):
            client.log_batch(run_id, params=part)
        for part in _parts([Metric(k, v, now, 0) for k, v in metrics.items()]):
            client.log_batch(run_id, metrics=part)
        held.check()  # each of these may take as long as the lease lasts
        client.log_artifacts(run_id, str(folder), manifest.FOLDER)
        held.check()
        with tempfile.TemporaryDirectory(prefix="sparsemm-") as back:
            manifest.fetch(client, run_id, tags["manifest_sha256"], None, Path(back))
    except BaseException:
        with suppress(MlflowException):  # it may be the registry that failed
            client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id, "FINISHED")
    return run_id


def _version(held: Lease, name: str, run_id: str, tags: dict[str, str]) -> ModelVersion:
    from mlflow.exceptions import MlflowException

    client = held.client
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if not is_code(error, "RESOURCE_ALREADY_EXISTS"):
            raise
    held.check()
    source = f"runs:/{run_id}/{manifest.FOLDER}"
    client.create_model_version(name, source, run_id=run_id, tags=tags, await_creation_for=0)
    version = _only_version(client, name, tags["stage_hash"])
    if version is None:
        raise RegistryError("the version is not there after it was created", where=name, hint="publish again")
    if version.run_id == run_id:
        client.set_tag(run_id, "published", f"version {version.version}")
    else:
        client.delete_run(run_id)
    return version


def _parts(items: list[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(items), PER_REQUEST):
        yield items[start : start + PER_REQUEST]
