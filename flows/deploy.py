"""Deploys the flows on a Prefect server, with their pools, limits and automations: `sparsemm flows deploy`."""

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

LEASES_IN_MEMORY = f"""\
warning: this server keeps leases in memory. If it restarts, GPU slots that are in use then stay taken. Start it with
  PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE=prefect.server.concurrency.lease_storage.filesystem
and free slots that stay taken with `prefect gcl update {GPU_SLOTS} --active-slots 0`."""


def base_job_template(kind: str) -> dict[str, Any]:
    """Returns Prefect's template of a worker type, which is shipped with Prefect and needs no network."""
    folder = files("prefect.server.api").joinpath("collections_data/views/aggregate-worker-metadata.json")
    for workers in json.loads(folder.read_text(encoding="utf-8")).values():
        if kind in workers:
            template: dict[str, Any] = workers[kind]["default_base_job_configuration"]
            return template
    raise KeyError(kind)


def make_pool(client: SyncPrefectClient, name: str, kind: str) -> None:
    """Creates a work pool of this type, unless a pool of that name exists."""
    try:
        client.read_work_pool(name)
    except ObjectNotFound:
        client.create_work_pool(WorkPoolCreate(name=name, type=kind, base_job_template=base_job_template(kind)))


def automations(silence_seconds: int) -> list[AutomationCore]:
    """Returns the automations that restart runs whose engine has died, which would otherwise hold their slots forever.

    Args:
        silence_seconds: a run without any event for this long counts as dead; at least three heartbeats.
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


def install(client: SyncPrefectClient, automation: AutomationCore) -> None:
    """Creates an automation, or replaces the one of that name if it differs.

    An equal one is kept, because a new automation does not know the runs that are already being watched.
    """
    values = automation.model_dump(mode="json")
    kept = False
    for existing in client.read_automations_by_name(automation.name):
        if not kept and existing.model_dump(mode="json", include=set(values)) == values:
            kept = True
        else:
            client.delete_automation(existing.id)
    if not kept:
        client.create_automation(automation)


def keeps_leases_in_memory(client: SyncPrefectClient) -> bool:
    """Tells whether the server keeps its leases in memory, so that a restart leaves GPU slots taken."""
    settings = client.request("GET", "/admin/settings").json()
    return str(settings["server"]["concurrency"]["lease_storage"]).endswith(".memory")


@contextmanager
def _answering() -> Iterator[None]:
    """Turns the errors of Prefect's client into PipelineError."""
    url = PREFECT_API_URL.value()
    if not url:  # Prefect would deploy to a temporary server
        hint = "start a Prefect server and export PREFECT_API_URL=http://127.0.0.1:4200/api"
        raise PipelineError("not set", where="PREFECT_API_URL", hint=hint)
    try:
        yield
    except httpx.HTTPStatusError as error:
        hint = "set PREFECT_API_AUTH_STRING" if error.response.status_code == 401 else "see the server's log"
        raise PipelineError(f"the server answers {error.response.status_code}", where=url, hint=hint) from error
    except httpx.TransportError as error:
        hint = "start it with `prefect server start --host 127.0.0.1`"
        raise PipelineError(f"the Prefect server does not answer: {error}", where=url, hint=hint) from error


def deployments(pools: list[str], path: Path) -> list[str]:
    """Returns the flow/deployment names of the pools in prefect.yaml.

    Raises:
        PipelineError: if one uses an environment variable that is not set, which Prefect would replace by nothing.
    """
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))["deployments"]
    entries = [entry for entry in entries if entry["name"] in pools]
    missing = set(re.findall(r"{{ \$(\w+) }}", json.dumps(entries))) - os.environ.keys()
    if missing:
        what = f"environment variables are not set: {', '.join(sorted(missing))}"
        raise PipelineError(what, where=str(path), hint="docs/operations.md explains their values")
    return [f"{entry['entrypoint'].rpartition(':')[2]}/{entry['name']}" for entry in entries]


def deploy(root: Path, pools: list[str], slots: int, silence_seconds: int) -> None:
    """Creates pools, limits and automations, and deploys the flows. Running it again changes only what differs.

    Args:
        root: the repository; process workers run in it.
        pools: names in `POOLS`.
        slots: number of flow runs that may use a GPU at the same time, over all hosts.
        silence_seconds: see `automations`.

    Raises:
        PipelineError: if PREFECT_API_URL is not set, the server does not answer or refuses, or `prefect deploy` fails.
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
        if keeps_leases_in_memory(client):
            print(LEASES_IN_MEMORY, file=sys.stderr)
    options = [option for name in names for option in ("--name", name)]
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", *options]
    variables = os.environ | {"SPARSEMM_ROOT": str(root.resolve())}
    if code := subprocess.run(command, cwd=root, env=variables, check=False).returncode:
        raise PipelineError(f"`prefect deploy` ended with {code}", where=str(root), hint="see its output above")


def at_least_one(text: str) -> int:
    """Parses a positive integer of the command line."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def main(arguments: list[str] | None = None) -> int:
    """Parses the command line, deploys and returns 0, or 1 after printing what is wrong and what to do."""
    example = "example: sparsemm flows deploy --slots 4"
    parser = argparse.ArgumentParser(prog="sparsemm flows deploy", description=__doc__, epilog=example)
    parser.add_argument("--root", type=Path, default=Path("."), help="the repository (here)")
    parser.add_argument("--pool", action="append", choices=sorted(POOLS), help="process (default); may be repeated")
    parser.add_argument("--slots", type=at_least_one, help="GPU slots over all hosts (GPUs of this host, at least 1)")
    parser.add_argument(
        "--silence", type=at_least_one, default=90, help="seconds without a heartbeat after which a run is dead (90)"
    )
    args = parser.parse_args(arguments)
    try:
        deploy(args.root, args.pool or ["process"], args.slots or max(len(visible_gpus()), 1), args.silence)
    except SparseMMError as error:
        print(f"sparsemm: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
