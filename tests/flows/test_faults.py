"""Things that go wrong, and many runs at once, on a real server; afterwards all is as after a quiet run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from prefect.client.orchestration import get_client

from flows.alerts import automations, install
from sparsemm.errors import PipelineError
from sparsemm.pipeline.integrate import integrate
from tests.flows.runs import (
    SILENCE,
    children,
    ended,
    go_on,
    hang,
    hanging,
    inside,
    logs,
    nothing_left,
    start,
    state,
    taken,
)
from tests.servers import SERVER, answers, wait_for


def test_a_worker_killed_in_a_stage(deployed, worker, quiet):
    hang(deployed, "chase one")
    first = worker("control")
    run = start("pipeline/nightly", root=".", publish=False)
    hanging(deployed)
    os.kill(first.child.pid, signal.SIGKILL)
    go_on(deployed)
    worker("control")
    ended(run)
    assert deployed.outputs() == quiet
    nothing_left(deployed)


@pytest.fixture
def little_patience(deployed):
    """The automation that notices silence does so soon: after little more than one heartbeat."""
    with get_client(sync_client=True) as client:
        install(client, automations(35)[0])
        yield
        install(client, automations(SILENCE)[0])


def test_engine_and_worker_killed(deployed, little_patience, worker, quiet):
    """Nobody is left to report: the automation notices the silence, marks the crash, and the run starts again."""
    hang(deployed, "chase one")
    first = worker("control")
    run = start("pipeline/nightly", root=".", publish=False)
    hanging(deployed)
    for pid in [*children(first), first.child.pid]:
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not inside(deployed), "the guard ends DVC and its stage")
    go_on(deployed)
    assert deployed.called()["chase one"] == 1
    seen = set()
    wait_for(lambda: seen.add(state(run)) or ("SCHEDULED", "AwaitingRetry") in seen, "another try")
    worker("control")
    ended(run)
    assert deployed.outputs() == quiet and deployed.called()["chase one"] == 1
    nothing_left(deployed)


def test_cancel_ends_every_child(deployed, worker, quiet):
    from prefect.states import Cancelling

    hang(deployed, "chase one")
    worker("control")
    run = start("pipeline/nightly", root=".", publish=False)
    hanging(deployed)
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run, Cancelling(), force=True)
    wait_for(lambda: state(run)[0] == "CANCELLED", "cancellation")
    wait_for(lambda: not inside(deployed), lambda: f"an end of {inside(deployed)}")
    go_on(deployed)
    again = start("pipeline/nightly", root=".", publish=False)
    ended(again)
    assert deployed.outputs() == quiet
    nothing_left(deployed)


def test_the_server_restarts_in_a_run(deployed, worker, quiet, prefect_api):
    hang(deployed, "chase one")
    worker("control")
    run = start("pipeline/nightly", root=".", publish=False)
    hanging(deployed)
    SERVER[0].stop()
    time.sleep(3)
    SERVER[0].start()
    wait_for(lambda: answers(prefect_api + "/health"), "the server")
    go_on(deployed)
    ended(run)
    wait_for(lambda: taken() == 0, "a server that remembers who holds a slot")
    assert deployed.outputs() == quiet
    nothing_left(deployed)


def test_two_flows_for_the_same_model_at_once(deployed, worker, quiet):
    worker("gpu")
    worker("gpu")
    hang(deployed, "chase one")
    runs = [start("model/process", root=".", key="one") for _ in range(2)]
    hanging(deployed)
    wait_for(lambda: any("another run holds worktree-one" in log for run in runs for log in logs(run)), "the other run")
    go_on(deployed)
    for run in runs:
        ended(run)
    called = deployed.called()
    assert called["chase one"] == called["profile one"] == 1
    worker("control")
    ended(start("pipeline/nightly", root=".", publish=False))
    assert deployed.outputs() == quiet and deployed.called()["chase one"] == 0
    nothing_left(deployed)


def test_more_models_than_workers(deployed, worker):
    """Two workers, each of which takes one model at a time, as with a GPU each."""
    keys = [f"m{number}" for number in range(3)]
    deployed.set_models(*keys)
    for _ in range(2):
        worker("gpu", "--limit", "1")
    worker("control")
    run = start("pipeline/nightly", root=".", publish=False, spread="process")
    ended(run)
    called = deployed.called()
    assert {called[f"{stage} {key}"] for stage in ("chase", "profile") for key in keys} == {1}
    with open(deployed.root / "dvc.lock") as lock:
        assert lock.read().count("chase@m") == len(keys)
    nothing_left(deployed)


def test_events_of_one_checkpoint_make_one_run(deployed, prefect_api):
    """Three events within a second, the first by the command; the worker that would run it is left out."""
    resource = "checkpoint.one"
    command = ["prefect", "event", "emit", "checkpoint.arrived", "--resource-id", resource]
    subprocess.run([sys.executable, "-m", *command], check=True, capture_output=True)
    event = {"event": "checkpoint.arrived", "resource": {"prefect.resource.id": resource}, "payload": {}}

    def runs():
        with get_client(sync_client=True) as client:
            found = client.read_flow_runs(limit=200)
        return [run for run in found if run.parameters.get("watch") == resource]

    with get_client(sync_client=True) as client:
        now = datetime.now(UTC).isoformat()
        client.request("POST", "/events", json=[event | {"id": str(uuid4()), "occurred": now} for _ in range(2)])
    wait_for(runs, "a run")
    time.sleep(5)
    assert len(runs()) == 1


def test_a_stage_that_fills_the_disk(repository, quiet):
    """The results lie on a file system of a few pages; with room again everything is as after a quiet run."""
    repository.set_models("one")
    target = repository.root / "artifacts"
    target.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=24k", "none", str(target)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("file systems cannot be mounted here")
    try:
        # Either the stage meets the full disk, or DVC does, when it links the outputs.
        with pytest.raises(PipelineError, match="No space left|No possible cache link"):
            integrate(repository.root, [], "Results")
        assert not inside(repository)
        subprocess.run(["mount", "-o", "remount,size=8m", str(target)], check=True)
        integrate(repository.root, [], "Results")
        assert repository.outputs() == quiet
        nothing_left(repository)
    finally:
        subprocess.run(["umount", str(target)], check=True)
