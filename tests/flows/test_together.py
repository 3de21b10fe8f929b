"""Many runs at once, on a real server with real workers, and a disk that is too small."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from sparsemm.errors import PipelineError
from sparsemm.pipeline.integrate import integrate
from tests.flows.runs import ended, go_on, hang, hanging, inside, nothing_left, start
from tests.servers import wait_for


def test_two_flows_for_the_same_model_at_once(deployed, worker, quiet):
    worker("gpu")
    worker("gpu")
    hang(deployed, "chase one")
    runs = [start("model/process", root=".", key="one") for _ in range(2)]
    hanging(deployed)
    time.sleep(5)  # the other one has had its chance
    go_on(deployed)
    for run in runs:
        ended(run)
    called = deployed.called()
    assert called["chase one"] == called["profile one"] == 1
    worker("control")
    ended(start("pipeline/process", root=".", publish=False))
    assert deployed.outputs() == quiet and deployed.called()["chase one"] == 0
    nothing_left(deployed)


def test_eight_models_on_two_workers(deployed, worker):
    keys = [f"m{number}" for number in range(8)]
    deployed.set_models(*keys)
    worker("gpu")
    worker("gpu")
    worker("control")
    run = start("pipeline/process", root=".", publish=False, spread="process")
    ended(run, seconds=400)
    called = deployed.called()
    assert {called[f"chase {key}"] for key in keys} == {1}
    with open(deployed.root / "dvc.lock") as lock:
        assert lock.read().count("chase@m") == 8
    nothing_left(deployed)


def test_events_of_one_checkpoint_make_one_run(deployed, prefect_api):
    """Three events at once; the worker that would run it is left out."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName, FlowFilter, FlowFilterName

    command = [
        sys.executable,
        "-m",
        "prefect",
        "event",
        "emit",
        "checkpoint.arrived",
        "--resource-id",
        "checkpoint.one",
    ]
    for _ in range(3):
        subprocess.run(command, check=True, capture_output=True)

    def runs():
        with get_client(sync_client=True) as client:
            found = client.read_flow_runs(
                flow_filter=FlowFilter(name=FlowFilterName(any_=["rechase"])),
                deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=["process"])),
            )
        return [run for run in found if run.parameters.get("watch") == "checkpoint.one"]

    wait_for(runs, "a run", 60)
    time.sleep(5)
    assert len(runs()) == 1


def test_a_stage_that_fills_the_disk(repository, quiet):
    """The results lie on a file system of a few pages; with room again everything is as after a quiet run."""
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
