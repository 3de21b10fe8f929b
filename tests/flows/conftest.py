"""One Prefect server for the session, with the pools and limits that the flows need."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from tests.flows.runs import SILENCE
from tests.postgres import cluster, installed
from tests.repository import copy_repository
from tests.servers import SERVER, Process, prefect_server


@pytest.fixture(scope="session")
def database():
    """Variables of a server on PostgreSQL; none where it is not installed, though SQLite loses events when locked."""
    if not installed():
        yield {}
        return
    with cluster("prefect") as place:
        yield {"PREFECT_SERVER_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://me@{place}/prefect"}


@pytest.fixture(scope="session")
def prefect_api(database, tmp_path_factory):
    """Address of a Prefect server's API; this process's flows and clients use it."""
    folder = tmp_path_factory.mktemp("prefect")
    server, address = prefect_server(folder, database)
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


@pytest.fixture(scope="session")
def site(repository_template, prefect_api, tmp_path_factory):
    """The folder that flows are deployed from, by the command; a deployment names it, so every test has the same."""
    folder = tmp_path_factory.mktemp("site")
    repository = copy_repository(repository_template, folder)
    command = [sys.executable, "-m", "flows.deploy", "--slots", "2", "--silence", str(SILENCE)]
    done = subprocess.run(command, cwd=repository.root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def one_model(template, folder):
    """A copy of the template without its second model: the time of DVC grows with the square of the stages."""
    repository = copy_repository(template, folder)
    repository.set_models("one")
    return repository


@pytest.fixture
def deployed(site, repository_template, gpu_slots, monkeypatch):
    """A fresh repository of one model whose flows are deployed, and this process is set for it."""
    for path in site.iterdir():
        shutil.rmtree(path)
    return one_model(repository_template, site).enter(monkeypatch)


@pytest.fixture(scope="session")
def quiet(repository_template, tmp_path_factory):
    """Hashes of a run in which nothing goes wrong: plain `dvc repro`."""
    calm = one_model(repository_template, tmp_path_factory.mktemp("quiet"))
    calm.repro("-q")
    return calm.outputs()


@pytest.fixture
def worker(deployed, tmp_path):
    """`worker(pool)` starts a worker of a pool in the repository; all are stopped at the end."""
    started: list[Process] = []

    def start(pool: str, *options: str) -> Process:
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", "process", *options]
        variables = {
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
            "PREFECT_WORKER_CANCELLATION_POLL_SECONDS": "2",
        }
        log = tmp_path / f"worker-{len(started)}.log"
        started.append(Process(command, log, variables, deployed.root).start())
        return started[-1]

    yield start
    for process in started:
        process.stop(seconds=5.0)
