"""Make what the flows need on a Prefect server, and deploy them: `sparsemm flows deploy`."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from datetime import timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectNotFound

from flows.stages import GPU_SLOTS
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
    """Create an automation, or replace the one of its name."""
    for known in client.read_automations_by_name(wanted.name):
        client.delete_automation(known.id)
    client.create_automation(wanted)


def forgetful(client: SyncPrefectClient) -> bool:
    """Whether the server keeps its leases in memory: a restart then leaves the GPU slots of that moment taken."""
    settings = client.request("GET", "/admin/settings").json()
    return str(settings["server"]["concurrency"]["lease_storage"]).endswith(".memory")


def deployments(pool: str, path: Path) -> list[str]:
    """flow/deployment names in prefect.yaml that belong to a pool."""
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))["deployments"]
    return [f"{entry['entrypoint'].rpartition(':')[2]}/{entry['name']}" for entry in entries if entry["name"] == pool]


def deploy(root: Path, pools: list[str], slots: int, silence_seconds: int) -> None:
    """Make pools, limits and automations, and deploy; running it again changes only what is different.

    Args:
        root: the repository; process workers run in it.
        pools: of `POOLS`.
        slots: flow runs that may use a GPU at once, over all hosts.
        silence_seconds: see `automations`.
    """
    with get_client(sync_client=True) as client:
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
    names = [name for pool in pools for name in deployments(pool, root / "prefect.yaml")]
    options = [option for name in names for option in ("--name", name)]
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", *options]
    variables = os.environ | {"SPARSEMM_ROOT": str(root.resolve())}
    subprocess.run(command, cwd=root, env=variables, check=True)


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and deploy."""
    parser = argparse.ArgumentParser(prog="sparsemm flows deploy", description=__doc__)
    parser.add_argument("--root", type=Path, default=Path("."), help="the repository (here)")
    parser.add_argument("--pool", action="append", choices=sorted(POOLS), help="process (default); may be repeated")
    parser.add_argument("--slots", type=int, help="GPU slots over all hosts (GPUs of this host, at least 1)")
    parser.add_argument("--silence", type=int, default=90, help="seconds without a heartbeat after which a run is dead")
    given = parser.parse_args(arguments)
    deploy(given.root, given.pool or ["process"], given.slots or max(len(visible_gpus()), 1), given.silence)


if __name__ == "__main__":
    main()
