"""One Prefect server for the session, with the pools and limits that the flows need."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.repository import copy_repository
from tests.servers import SERVER, Process, prefect_server


@pytest.fixture(scope="session")
def prefect_api(tmp_path_factory):
    """Address of a Prefect server's API; this process's flows and clients use it."""
    folder = tmp_path_factory.mktemp("prefect")
    server, address = prefect_server(folder)
    SERVER.append(server)
    os.environ["PREFECT_HOME"] = str(folder / "client")
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

    with temporary_settings({PREFECT_API_URL: address, PREFECT_HOME: folder / "client"}):
        os.environ["PREFECT_API_URL"] = address  # for child processes
        yield address
        del os.environ["PREFECT_API_URL"], os.environ["PREFECT_HOME"]
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    for background in (APILogWorker, EventsWorker):  # or they go on trying after the server has gone
        background.drain_all(timeout=10)
    server.stop()


@pytest.fixture
def gpu_slots(prefect_api):
    """Two GPU slots."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name("gpu", 2)


@pytest.fixture
def deployed(repository, prefect_api):
    """The repository, its flows deployed to the server by the command."""
    command = [sys.executable, "-m", "flows.deploy", "--slots", "2", "--silence", "75"]
    done = subprocess.run(command, cwd=repository.root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return repository


@pytest.fixture(scope="session")
def quiet(repository_template, tmp_path_factory):
    """Hashes of a run in which nothing goes wrong: plain `dvc repro`."""
    calm = copy_repository(repository_template, tmp_path_factory.mktemp("quiet"))
    calm.repro("-q")
    return calm.outputs()


@pytest.fixture
def worker(repository, tmp_path):
    """`worker(pool)` starts a worker of a pool in the repository; all are stopped at the end."""
    started: list[Process] = []

    def start(pool: str, **environment: str) -> Process:
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", "process"]
        variables = {
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
            "PREFECT_WORKER_CANCELLATION_POLL_SECONDS": "2",
            **environment,
        }
        log = tmp_path / f"worker-{len(started)}.log"
        started.append(Process(command, Path(log), variables, repository.root).start())
        return started[-1]

    yield start
    for process in started:
        process.stop(seconds=5.0)
