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
from pathlib import Path

import httpx
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL

from flows.alerts import WEBHOOK, automations, install_all, save_webhook
from flows.containers import job_template, refuse_loopback
from flows.stages import GPU_SLOTS
from sparsemm.errors import PipelineError, SparseMMError
from sparsemm.pipeline.gpus import visible_gpus

POOLS = {"process": "process", "docker": "docker", "kubernetes": "kubernetes"}  # --pool -> type of worker

LEASES_IN_MEMORY = f"""\
warning: this server keeps leases in memory. If it restarts, GPU slots that are in use then stay taken. Start it with
  PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE=prefect.server.concurrency.lease_storage.filesystem
and free slots that stay taken with `prefect gcl update {GPU_SLOTS} --active-slots 0`."""


def make_pool(client: SyncPrefectClient, name: str, kind: str) -> None:
    """Creates a work pool of this type, unless a pool of that name exists.

    Raises:
        PipelineError: if it exists with a job template that lacks a variable of ours.
    """
    template = job_template(kind)
    try:
        existing = client.read_work_pool(name).base_job_template
    except ObjectNotFound:
        client.create_work_pool(WorkPoolCreate(name=name, type=kind, base_job_template=template))
        return
    missing = template["variables"]["properties"].keys() - existing.get("variables", {}).get("properties", {}).keys()
    if missing:
        hint = f"delete it (`prefect work-pool delete {name}`) and deploy again, or add them"
        raise PipelineError(
            f"its job template lacks {', '.join(sorted(missing))}", where=f"work pool {name}", hint=hint
        )


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
    """Returns the flow/deployment names in prefect.yaml that run in these pools.

    Raises:
        PipelineError: if one uses an environment variable that is not set, which Prefect would replace by nothing, or
            names a server that its containers cannot reach.
    """
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))["deployments"]
    entries = [entry for entry in entries if POOLS.get(entry["work_pool"]["name"], "process") in pools]
    used = set(re.findall(r"{{ \$(\w+) }}", json.dumps(entries)))
    if missing := used - os.environ.keys():
        what = f"environment variables are not set: {', '.join(sorted(missing))}"
        raise PipelineError(what, where=str(path), hint="docs/operations.md explains their values")
    refuse_loopback({name: os.environ[name] for name in used})
    flows = [entry["entrypoint"].rpartition(":")[2].replace("_", "-") for entry in entries]  # as Prefect names them
    return [f"{flow}/{entry['name']}" for flow, entry in zip(flows, entries, strict=True)]


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
        if (webhook := save_webhook()) is None:
            print(f"no new alerts: {WEBHOOK} is not set", file=sys.stderr)
        install_all(client, automations(silence_seconds, webhook))
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
