"""Flow runs of a server with real workers: start them, stop their stages in the middle, see what is left."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.request
from pathlib import Path

from sparsemm.pipeline.locks import first_free
from tests.servers import wait_for

SILENCE = 75  # seconds; more than two heartbeats, of which Prefect sends one in 30 s at most
FINAL = {"COMPLETED", "FAILED", "CANCELLED"}  # a crashed run starts again


def start(name, **parameters):
    """A flow run of a deployment, scheduled now."""
    from prefect.deployments import run_deployment

    return run_deployment(name, parameters=parameters, timeout=0).id


def state(run):
    """Type and name of a flow run's state: asked for often, and Prefect's client takes 0.1 s to set up."""
    with urllib.request.urlopen(f"{os.environ['PREFECT_API_URL']}/flow_runs/{run}", timeout=60) as reply:
        found = json.load(reply)["state"]
    return found["type"], found["name"]


def ended(run, wanted="COMPLETED"):
    """Wait until a flow run has ended, and as wanted."""
    wait_for(lambda: state(run)[0] in FINAL, lambda: f"end of the run, which is {state(run)}")
    assert state(run)[0] == wanted


def logs(run):
    """Messages that a flow run has logged."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId

    with get_client(sync_client=True) as client:
        return [log.message for log in client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run])))]


def taken():
    """GPU slots that are taken."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return client.read_global_concurrency_limit_by_name("gpu").active_slots


def hang(repository, stage):
    """The stand-in will stop in this stage; wait for it with `hanging`."""
    (repository.told / "hang").write_text(stage)


def hanging(repository):
    """Wait until the stand-in hangs; its process id."""
    mark = repository.told / "hanging"
    wait_for(mark.exists, "the stage that hangs")
    wait_for(lambda: mark.read_text().isdigit(), "its process id")
    return int(mark.read_text())


def go_on(repository):
    """Let the stand-in go on, and every later one through."""
    (repository.told / "hang").unlink()
    (repository.told / "hanging").unlink(missing_ok=True)


def inside(repository):
    """Commands of living processes that run in the repository or a worktree of it, workers and their like left out."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.readlink(entry / "cwd").startswith(str(repository.root)):
                words = (entry / "cmdline").read_bytes().decode().split("\0")
                if not any("prefect" in word for word in words) and (entry / "stat").read_text().split()[2] != "Z":
                    found.append(" ".join(words))
        except OSError:
            continue
    return found


def children(process):
    """Process ids of the engines that a worker started."""
    lines = subprocess.run(["ps", "-eww", "-o", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in lines.splitlines()[1:]]
    found, parents = [], {str(process.child.pid)}
    for _ in range(4):
        new = {pid for pid, parent, _ in rows if parent in parents}
        found += [int(pid) for pid, _, words in rows if pid in new and "prefect" in words]
        parents = new
    return found


def nothing_left(repository):
    """No process, no worktree, no held lock."""
    wait_for(lambda: not inside(repository), lambda: f"an end of {inside(repository)}")
    assert repository.git("worktree", "list").count("\n") == 1
    assert not (repository.root / ".git" / "index.lock").exists()
    for path in (repository.root / "build" / "locks").iterdir():
        free = first_free([path])
        assert free is not None, path
        os.close(free[1])
