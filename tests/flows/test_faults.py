"""Things that are killed, on a real server with real workers; afterwards everything is as after a quiet run."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from tests.flows.runs import children, ended, go_on, hang, hanging, inside, nothing_left, start, state, taken
from tests.servers import SERVER, answers, wait_for


def test_a_worker_killed_in_a_stage(deployed, worker, quiet):
    hang(deployed, "chase one")
    first = worker("control")
    run = start("pipeline/process", root=".", publish=False)
    hanging(deployed)
    os.kill(first.child.pid, signal.SIGKILL)
    go_on(deployed)
    worker("control")
    ended(run)
    assert deployed.outputs() == quiet
    nothing_left(deployed)


def test_engine_and_worker_killed(deployed, worker, quiet):
    """Nobody is left to report: the automation notices the silence, marks the crash, and the run starts again."""
    hang(deployed, "chase one")
    first = worker("control")
    run = start("pipeline/process", root=".", publish=False)
    hanging(deployed)
    for pid in [*children(first), first.child.pid]:
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not inside(deployed), "the guard ends DVC and its stage", 30)
    go_on(deployed)
    assert deployed.called()["chase one"] == 1
    seen = set()
    wait_for(lambda: seen.add(state(run)) or ("SCHEDULED", "AwaitingRetry") in seen, "another try", 240)
    worker("control")
    ended(run)
    assert deployed.outputs() == quiet and deployed.called()["chase one"] == 1
    nothing_left(deployed)


def test_cancel_ends_every_child(deployed, worker, quiet):
    from prefect.client.orchestration import get_client
    from prefect.states import Cancelling

    hang(deployed, "chase one")
    worker("control")
    run = start("pipeline/process", root=".", publish=False)
    pid = hanging(deployed)
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run, Cancelling(), force=True)
    wait_for(lambda: state(run)[0] == "CANCELLED", "cancellation", 60)
    wait_for(lambda: not Path(f"/proc/{pid}").exists() or not inside(deployed), "the stage's end", 60)
    wait_for(lambda: not inside(deployed), f"an end of {inside(deployed)}", 30)
    go_on(deployed)
    again = start("pipeline/process", root=".", publish=False)
    ended(again)
    assert deployed.outputs() == quiet
    nothing_left(deployed)


def test_the_server_restarts_in_a_run(deployed, worker, quiet, prefect_api):
    hang(deployed, "chase one")
    worker("control")
    run = start("pipeline/process", root=".", publish=False)
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
