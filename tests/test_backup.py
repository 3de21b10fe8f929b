"""Backups of real servers, taken while they run, and restored into new ones."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys

import httpx
import pytest

from sparsemm.backup import create, restore
from sparsemm.cli import main
from sparsemm.errors import PipelineError
from tests.registry.conftest import Workspace
from tests.repository import ROOT
from tests.servers import prefect_server, registry_server


def database(path, value):
    """A SQLite file in WAL mode with one row, written by a connection that stays open."""
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path)
    connection.executescript("pragma journal_mode=wal; create table t (a text)")
    connection.execute("insert into t values (?)", (value,))
    connection.commit()
    return connection


@pytest.fixture
def there(tmp_path, monkeypatch):
    """A repository with a registry, a Prefect database and a cache of DVC; the first two are open."""
    root = tmp_path / "here"
    for name in ("MLFLOW_BACKEND_STORE_URI", "PREFECT_SERVER_DATABASE_CONNECTION_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.setattr("sparsemm.backup.cache_folder", lambda root: root / "cache")
    opened = [
        database(root / "artifacts" / "registry" / "mlflow.db", "mlflow"),
        database(tmp_path / "prefect" / "prefect.db", "prefect"),
    ]
    (tmp_path / "prefect" / "profiles.toml").write_text("of this machine")
    for name in ("artifacts/registry/files/runs/1/a.txt", "cache/files/md5/ab/cd"):
        (root / name).parent.mkdir(parents=True)
        (root / name).write_text(name)
    yield root
    for connection in opened:
        connection.close()


def rows(path):
    with sqlite3.connect(path) as connection:
        found = connection.execute("select a from t").fetchall()
    connection.close()
    return found


def test_everything_comes_back_elsewhere(there, tmp_path, monkeypatch, capsys):
    backup, root = tmp_path / "backups" / "today", tmp_path / "other"
    assert main(["--root", str(there), "backup", "create", str(backup)]) == 0
    assert "registry (2 files), prefect (1 files), dvc (1 files)" in capsys.readouterr().out
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "other-prefect"))
    assert main(["--root", str(root), "backup", "restore", str(backup)]) == 0
    assert rows(root / "artifacts" / "registry" / "mlflow.db") == [("mlflow",)]
    assert rows(tmp_path / "other-prefect" / "prefect.db") == [("prefect",)]
    assert not (tmp_path / "other-prefect" / "profiles.toml").exists()
    for name in ("artifacts/registry/files/runs/1/a.txt", "cache/files/md5/ab/cd"):
        assert (root / name).read_text() == name
    assert not list(root.rglob("*.partial"))


def test_nothing_is_overwritten(there, tmp_path):
    create(there, tmp_path / "backup")
    with pytest.raises(PipelineError, match="exists already"):
        create(there, tmp_path / "backup")
    with pytest.raises(PipelineError, match="mlflow.db: a database exists already"):
        restore(there, tmp_path / "backup")
    create(there, tmp_path / "cache-only", ("dvc",))
    (there / "cache/files/md5/ab/cd").unlink()
    assert restore(there, tmp_path / "cache-only") == {"dvc": 1}
    assert (there / "cache/files/md5/ab/cd").exists()


@pytest.mark.parametrize("damage", ["missing", "changed", "extra", "manifest", "format"])
def test_a_damaged_backup_restores_nothing(there, tmp_path, damage):
    backup, root = tmp_path / "backup", tmp_path / "other"
    create(there, backup, ("registry", "dvc"))
    file = backup / "registry" / "files" / "runs" / "1" / "a.txt"
    if damage == "missing":
        file.unlink()
    elif damage == "changed":
        file.write_text("b" * file.stat().st_size)
    elif damage == "extra":
        file.with_name("b.txt").write_text("b")
    elif damage == "manifest":
        (backup / "backup.json").write_text("[]")
    else:
        manifest = backup / "backup.json"
        manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(PipelineError):
        restore(root, backup)
    assert not root.exists()


def test_what_cannot_be_backed_up_is_said_and_leaves_nothing(there, tmp_path, monkeypatch):
    shutil.rmtree(there / "cache")
    with pytest.raises(PipelineError, match="nothing to back up for dvc"):
        create(there, tmp_path / "backups" / "one")
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", "postgresql+psycopg://me:canary@db/mlflow")
    with pytest.raises(PipelineError, match="not a SQLite file") as caught:
        create(there, tmp_path / "backups" / "two", ("registry",))
    assert "canary" not in str(caught.value) and not list((tmp_path / "backups").iterdir())


def test_servers_that_run_are_backed_up_and_restored(tmp_path, monkeypatch):
    """The version that was published is found on a new registry, and the flow run on a new Prefect server."""
    from sparsemm.registry.lookup import look_up
    from sparsemm.registry.publish import publish

    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_BACKEND_STORE_URI", "PREFECT_SERVER_DATABASE_CONNECTION_URL"):
        monkeypatch.delenv(name, raising=False)
    here, there, backup = (tmp_path / name for name in ("here", "there", "backup"))
    for folder in (here, there):
        folder.mkdir()
    workspace = Workspace(here, "m")
    monkeypatch.setenv("PREFECT_HOME", str(here / "prefect"))
    server, address = prefect_server(here)
    try:
        flow = httpx.post(f"{address}/flows/", json={"name": "kept"})
        assert flow.status_code == 201
        with registry_server(here) as (uri, _):
            published = publish(workspace.params, "m", here, tracking_uri=uri)
            command = [sys.executable, "-m", "sparsemm.cli", "--root", str(here), "backup", "create", str(backup)]
            subprocess.run([*command, "--part", "registry", "--part", "prefect"], check=True)
    finally:
        server.stop()
    monkeypatch.setenv("PREFECT_HOME", str(there / "prefect"))
    restore(there, backup)
    # The commands of docs/operations.md, which has the same words.
    upgrades = ["mlflow db upgrade sqlite:///artifacts/registry/mlflow.db", "prefect server database upgrade --yes"]
    for words in upgrades:
        assert f"python -m {words}\n" in (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
        subprocess.run([sys.executable, "-m", *words.split()], cwd=there, check=True, capture_output=True)
    with registry_server(there) as (uri, _):
        table = look_up(f"models:/{published.name}@candidate", tracking_uri=uri, cache_dir=tmp_path / "cache")
        assert table.resolved.version == published.version and table.table.header["fingerprint"] == "print-m"
    server, address = prefect_server(there)
    try:
        assert [one["name"] for one in httpx.post(f"{address}/flows/filter", json={}).json()] == ["kept"]
    finally:
        server.stop()
