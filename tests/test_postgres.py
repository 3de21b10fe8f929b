"""Both servers on PostgreSQL, from Debian's packages; skipped with a word where there is none."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.postgres import cluster, installed
from tests.registry.conftest import Workspace
from tests.servers import prefect_server, registry_server


@pytest.fixture(scope="module")
def postgres():
    """`host:port` of a cluster with the databases "prefect" and "mlflow"."""
    if not installed():
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    with cluster("prefect", "mlflow") as place:
        yield place


def test_prefect_runs_the_pipeline_on_it(postgres, repository, tmp_path):
    variables = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://me@{postgres}/prefect"}
    server, address = prefect_server(tmp_path, variables)
    code = (
        "from prefect.client.orchestration import get_client\n"
        "from flows.pipeline import pipeline\n"
        "with get_client(sync_client=True) as client: client.upsert_global_concurrency_limit_by_name('gpu', 1)\n"
        "assert [row['ran'] != 'nothing' for row in pipeline(models=['one'], publish=False)] == [True]\n"
    )
    try:
        client = {"PREFECT_API_URL": address, "PREFECT_HOME": str(tmp_path / "client")}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=repository.root, env=os.environ | client, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert repository.called()["profile one"] == 1
    finally:
        server.stop()


def test_the_registry_publishes_and_finds_on_it(postgres, tmp_path):
    from sparsemm.registry.lookup import load_scores
    from sparsemm.registry.publish import publish

    (tmp_path / "work").mkdir()
    workspace = Workspace(tmp_path / "work", "one")
    store = {"MLFLOW_BACKEND_STORE_URI": f"postgresql+psycopg://me@{postgres}/mlflow"}
    with registry_server(tmp_path, **store) as (address, _):
        made = publish(workspace.params, "one", workspace.root, tracking_uri=address)
        again = publish(workspace.params, "one", workspace.root, tracking_uri=address)
        assert made.created and not again.created and made.version == again.version
        found = load_scores(f"models:/{made.name}/1", tracking_uri=address, cache_dir=tmp_path / "cache")
        assert found.scores.sum() > 0
