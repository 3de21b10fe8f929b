"""Make what the flows need on a Prefect server, and deploy them: `sparsemm flows deploy`."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL

from flows.stages import GPU_SLOTS
from sparsemm.errors import PipelineError, SparseMMError
from sparsemm.pipeline.gpus import visible_gpus

POOLS = {"process": "process", "docker": "docker", "kubernetes": "kubernetes"}  # --pool -> type of worker
OURS: dict[str, str | list[str]] = {"prefect.resource.role": "tag", "prefect.resource.id": "prefect.tag.sparsemm"}

FORGETFUL = f"""\
warning: this server keeps leases in memory. When it restarts, the GPU slots in use then stay taken. Start it with
  PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE=prefect.server.concurrency.lease_storage.filesystem
and free what is taken for nothing with `prefect gcl update {GPU_SLOTS} --active-slots 0`."""


def base_job_template(kind: str) -> dict[str, Any]:
    """Prefect's own template of a worker type, as shipped with it: neither network nor the worker's package needed."""
    folder = files("prefect.server.api").joinpath("collections_data/views/aggregate-worker-metadata.json")
    for workers in json.loads(folder.read_text(encoding="utf-8")).values():
        if kind in workers:
            template: dict[str, Any] = workers[kind]["default_base_job_configuration"]
            return template
    raise KeyError(kind)


def make_pool(client: SyncPrefectClient, name: str, kind: str) -> None:
    """A work pool of this type; one that exists stays as it is."""
    try:
        client.read_work_pool(name)
    except ObjectNotFound:
        client.create_work_pool(WorkPoolCreate(name=name, type=kind, base_job_template=base_job_template(kind)))


def automations(silence_seconds: int) -> list[AutomationCore]:
    """What sees to runs whose engine has died: without these they are Running for ever and hold their slots.

    Args:
        silence_seconds: a run without any event for this long is dead; three heartbeats or more.
    """
    dead = AutomationCore(
        name="sparsemm: silent runs have crashed",
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.*"},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related=OURS,
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=silence_seconds),
        ),
        actions=[_state(StateType.CRASHED, "Crashed", f"nothing heard for {silence_seconds} s")],
    )
    again = AutomationCore(
        name="sparsemm: crashed runs start again",
        trigger=EventTrigger(
            expect={"prefect.flow-run.Crashed"},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related=OURS,
            for_each={"prefect.resource.id"},
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[_state(StateType.SCHEDULED, "AwaitingRetry", "after a crash")],
    )
    return [dead, again]


def _state(kind: StateType, name: str, message: str) -> ChangeFlowRunState:
    return ChangeFlowRunState(state=kind, name=name, message=message, force=False)


def install(client: SyncPrefectClient, wanted: AutomationCore) -> None:
    """Create an automation, or replace the one of its name if it is another: a new one forgets the runs it watches."""
    asked = wanted.model_dump(mode="json")
    kept = False
    for known in client.read_automations_by_name(wanted.name):
        if not kept and known.model_dump(mode="json", include=set(asked)) == asked:
            kept = True
        else:
            client.delete_automation(known.id)
    if not kept:
        client.create_automation(wanted)


def forgetful(client: SyncPrefectClient) -> bool:
    """Whether the server keeps its leases in memory: a restart then leaves the GPU slots of that moment taken."""
    settings = client.request("GET", "/admin/settings").json()
    return str(settings["server"]["concurrency"]["lease_storage"]).endswith(".memory")


@contextmanager
def _answering() -> Iterator[None]:
    """Turn the errors of Prefect's client into ours."""
    url = PREFECT_API_URL.value()
    if not url:  # Prefect would start a server, deploy to it, and end it
        hint = "start one and export PREFECT_API_URL=http://127.0.0.1:4200/api"
        raise PipelineError("no Prefect server is named", where="PREFECT_API_URL", hint=hint)
    try:
        yield
    except httpx.HTTPStatusError as error:
        hint = "set PREFECT_API_AUTH_STRING" if error.response.status_code == 401 else "see the server's log"
        raise PipelineError(f"the server answers {error.response.status_code}", where=url, hint=hint) from error
    except httpx.TransportError as error:
        hint = "prefect server start --host 127.0.0.1"
        raise PipelineError(f"the Prefect server does not answer: {error}", where=url, hint=hint) from error


def deployments(pools: list[str], path: Path) -> list[str]:
    """flow/deployment names in prefect.yaml that belong to the pools.

    Raises:
        PipelineError: if one of them wants an environment variable that is not set: Prefect would leave a hole.
    """
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))["deployments"]
    wanted = [entry for entry in entries if entry["name"] in pools]
    missing = set(re.findall(r"{{ \$(\w+) }}", json.dumps(wanted))) - os.environ.keys()
    if missing:
        raise PipelineError(
            f"set {', '.join(sorted(missing))}", where=str(path), hint="docs/operations.md says to what"
        )
    return [f"{entry['entrypoint'].rpartition(':')[2]}/{entry['name']}" for entry in wanted]


def deploy(root: Path, pools: list[str], slots: int, silence_seconds: int) -> None:
    """Make pools, limits and automations, and deploy; running it again changes only what is different.

    Args:
        root: the repository; process workers run in it.
        pools: of `POOLS`.
        slots: flow runs that may use a GPU at once, over all hosts.
        silence_seconds: see `automations`.

    Raises:
        PipelineError: if no server is named, it does not answer or refuses, or `prefect deploy` fails.
    """
    names = deployments(pools, root / "prefect.yaml")
    with _answering(), get_client(sync_client=True) as client:
        for name in ("control", "gpu"):
            make_pool(client, name, "process")
        for pool in pools:
            if pool != "process":
                make_pool(client, pool, POOLS[pool])
        client.upsert_global_concurrency_limit_by_name(GPU_SLOTS, slots)
        for automation in automations(silence_seconds):
            install(client, automation)
        if forgetful(client):
            print(FORGETFUL, file=sys.stderr)
    options = [option for name in names for option in ("--name", name)]
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", *options]
    variables = os.environ | {"SPARSEMM_ROOT": str(root.resolve())}
    if code := subprocess.run(command, cwd=root, env=variables, check=False).returncode:
        raise PipelineError(f"`prefect deploy` ended with {code}", where=str(root), hint="it has said why above")


def at_least_one(text: str) -> int:
    """A number of the command line."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and deploy; 0, or 1 after printing what was wrong and what to do."""
    example = "example: sparsemm flows deploy --slots 4"
    parser = argparse.ArgumentParser(prog="sparsemm flows deploy", description=__doc__, epilog=example)
    parser.add_argument("--root", type=Path, default=Path("."), help="the repository (here)")
    parser.add_argument("--pool", action="append", choices=sorted(POOLS), help="process (default); may be repeated")
    parser.add_argument("--slots", type=at_least_one, help="GPU slots over all hosts (GPUs of this host, at least 1)")
    parser.add_argument(
        "--silence", type=at_least_one, default=90, help="seconds without a heartbeat after which a run is dead (90)"
    )
    given = parser.parse_args(arguments)
    try:
        deploy(given.root, given.pool or ["process"], given.slots or max(len(visible_gpus()), 1), given.silence)
    except SparseMMError as error:
        print(f"sparsemm: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
