"""What `sparsemm flows deploy` makes on a server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import pytest
import yaml

from flows.alerts import RESTART, SILENT
from flows.deploy import deploy, keeps_leases_in_memory, main
from sparsemm.errors import PipelineError
from tests.flows.runs import SILENCE
from tests.servers import answers, prefect_server, wait_for

ROOT = Path(__file__).parents[2]


def client():
    from prefect.client.orchestration import get_client

    return get_client(sync_client=True)


def test_pools_limits_automations_and_deployments(deployed):
    with client() as server:
        assert {pool.name for pool in server.read_work_pools()} >= {"control", "gpu"}
        assert server.read_global_concurrency_limit_by_name("gpu").limit == 2
        automations = [a for a in server.read_automations() if a.name.startswith("sparsemm: ")]
        found = {(d.name, d.work_pool_name, d.entrypoint): d for d in server.read_deployments()}
    assert {a.name for a in automations} == {SILENT, RESTART, "sparsemm: rechase a checkpoint when it arrives"}
    assert all(a.enabled for a in automations)
    assert {(name, pool) for name, pool, _ in found} >= {
        ("nightly", "control"),
        ("one-model", "gpu"),
        ("process", "gpu"),
    }
    rechase = found["new-checkpoints", "control", "flows/rechase.py:rechase"]
    assert rechase.schedules and rechase.concurrency_options.collision_strategy.value == "ENQUEUE"
    assert str(deployed.root) in str(rechase.pull_steps)
    assert all(d.tags == ["sparsemm"] for d in found.values())


def test_deploying_again_doubles_nothing(deployed):
    def state():
        with client() as server:
            ours = [a for a in server.read_automations() if a.name.startswith("sparsemm: ")]
            kept = [
                (a.name, a.id) for a in ours if a.name in (SILENT, RESTART)
            ]  # Prefect replaces that of prefect.yaml
            return sorted(kept), len(ours), len(server.read_deployments()), len(server.read_work_pools())

    before = state()
    options = ["--slots", "3", "--silence", str(SILENCE)]  # other automations would forget the runs they watch
    command = [sys.executable, "-m", "sparsemm.cli", "flows", "deploy", *options]
    subprocess.run(command, cwd=deployed.root, check=True, capture_output=True)
    assert state() == before
    with client() as server:
        assert server.read_global_concurrency_limit_by_name("gpu").limit == 3


@pytest.mark.parametrize("pool", ["docker", "kubernetes"])
def test_container_pools_take_their_deployments(deployed, pool, monkeypatch):
    """Against the template of the pool, which is what a worker of it reads; no cluster is here."""
    for name in ("IMAGE", "REPOSITORY", "BRANCH", "SHARED"):
        monkeypatch.setenv(f"SPARSEMM_{name}", f"some-{name.lower()}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://registry:5000")
    monkeypatch.setenv("SPARSEMM_PREFECT_API_URL", "http://127.0.0.1:4200/api")
    command = [sys.executable, "-m", "flows.deploy", "--pool", pool]
    done = subprocess.run(command, cwd=deployed.root, capture_output=True, text=True)
    assert done.returncode == 1 and "SPARSEMM_PREFECT_API_URL: 127.0.0.1 is the container itself" in done.stderr
    monkeypatch.setenv("SPARSEMM_PREFECT_API_URL", "http://prefect:4200/api")
    done = subprocess.run(command, cwd=deployed.root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    with client() as server:
        made = server.read_deployment_by_name(f"model/{pool}")
        template = server.read_work_pool(pool).base_job_template
    variables = made.job_variables
    assert variables["image"] == "some-image" and variables["env"]["MLFLOW_TRACKING_URI"] == "http://registry:5000"
    assert variables["env"]["PREFECT_API_URL"] == "http://prefect:4200/api"
    assert set(variables) <= set(template["variables"]["properties"])
    jsonschema.validate(variables, template["variables"] | {"required": []})
    assert "some-repository" in str(made.pull_steps)


def test_every_entry_of_prefect_yaml_names_a_flow(deployed):
    entries = yaml.safe_load((deployed.root / "prefect.yaml").read_text())["deployments"]
    from importlib import import_module

    for entry in entries:
        path, _, name = entry["entrypoint"].partition(":")
        flow = getattr(import_module(path.removesuffix(".py").replace("/", ".")), name)
        assert flow.name == name.replace("_", "-")


def test_deploying_outside_of_a_repository_is_refused(tmp_path):
    command = [sys.executable, "-m", "sparsemm.cli", "--root", str(tmp_path), "flows", "deploy"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "repository root" in done.stderr


@pytest.mark.parametrize(
    ("url", "options", "what"),
    [
        (None, [], "PREFECT_API_URL: not set"),
        ("http://127.0.0.1:9/api", [], "does not answer"),
        (
            None,
            ["--pool", "docker"],
            "not set: SPARSEMM_BRANCH, SPARSEMM_IMAGE, SPARSEMM_PREFECT_API_URL, SPARSEMM_SHARED (docs",
        ),
    ],
)
def test_what_is_missing_is_said_in_a_line(url, options, what, capsys, monkeypatch):
    from prefect.settings import PREFECT_API_URL, temporary_settings

    for name in ("BRANCH", "IMAGE", "PREFECT_API_URL", "SHARED"):
        monkeypatch.delenv(f"SPARSEMM_{name}", raising=False)
    for name in ("SPARSEMM_REPOSITORY", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, "given")
    with temporary_settings({PREFECT_API_URL: url}):
        assert main(["--root", str(ROOT), *options]) == 1
    said = capsys.readouterr().err
    assert what in said and said.count("\n") == 1


def test_a_server_that_forgets_its_leases_is_warned_of(deployed, prefect_api):
    with client() as server:
        assert not keeps_leases_in_memory(server)
        answer = {"server": {"concurrency": {"lease_storage": "prefect.server.concurrency.lease_storage.memory"}}}
        server.request = lambda *_: SimpleNamespace(json=lambda: answer)
        assert keeps_leases_in_memory(server)


def test_a_server_with_an_auth_string_asks_for_it(tmp_path, monkeypatch):
    import httpx
    from prefect.settings import PREFECT_API_URL, temporary_settings

    monkeypatch.delenv("PREFECT_API_KEY", raising=False)
    secret = "admin:canary-5a1e"
    server, address = prefect_server(tmp_path, {"PREFECT_SERVER_API_AUTH_STRING": secret})
    try:
        wait_for(lambda: answers(address + "/health"), "the server")
        assert httpx.post(address + "/flows/filter", json={}).status_code == 401
        with temporary_settings({PREFECT_API_URL: address}), pytest.raises(PipelineError, match="API_AUTH_STRING"):
            deploy(ROOT, ["process"], 1, 90)
        allowed = httpx.post(address + "/flows/filter", json={}, auth=("admin", "canary-5a1e"))
        assert allowed.status_code == 200
        assert "canary" not in server.text()
    finally:
        server.stop()


def test_the_server_makes_the_runs_that_schedules_ask_for(deployed):
    def scheduled():
        with client() as server:
            runs = server.read_flow_runs(limit=200)
        return [run for run in runs if run.auto_scheduled and run.state.is_scheduled()]

    wait_for(scheduled, "a scheduled run")
