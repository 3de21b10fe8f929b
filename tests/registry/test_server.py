"""The server: loopback, its password asked for and never shown, foreign sources refused."""

from __future__ import annotations

import configparser
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from urllib.request import url2pathname

import httpx
import pytest

from sparsemm.errors import RegistryError
from sparsemm.registry.client import connect, sqlite_file
from sparsemm.registry.publish import publish
from sparsemm.registry.server import SETTINGS, command
from tests.servers import registry_server


def test_settings_are_safe_whatever_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://another")
    words, environment = command(tmp_path, 5000)
    assert words[words.index("--host") + 1] == "127.0.0.1"
    assert environment.items() >= SETTINGS.items() and environment["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    assert environment["MLFLOW_BACKEND_STORE_URI"] == f"sqlite:///{tmp_path}/artifacts/registry/mlflow.db"
    assert "MLFLOW_TRACKING_URI" not in environment


def test_paths_are_written_as_those_who_read_them_want_them(tmp_path, monkeypatch):
    """SQLAlchemy ends a path at a ?, the reader of auth.ini replaces what follows a %, files are where a URI says."""
    monkeypatch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", "canary-password")
    root = tmp_path / "what? 100%s #1"
    words, environment = command(root, 5000, auth=True)
    folder = root / "artifacts" / "registry"
    assert sqlite_file(environment["MLFLOW_BACKEND_STORE_URI"]) == folder / "mlflow.db"
    assert (
        Path(url2pathname(urllib.parse.urlsplit(words[words.index("--artifacts-destination") + 1]).path))
        == folder / "files"
    )
    config = configparser.ConfigParser()
    config.read(environment["MLFLOW_AUTH_CONFIG_PATH"], encoding="utf-8")
    assert sqlite_file(config["mlflow"]["database_uri"]) == folder / "auth.db"


def test_secrets_are_in_the_environment_only(tmp_path, monkeypatch):
    with pytest.raises(RegistryError, match="MLFLOW_AUTH_ADMIN_PASSWORD"):
        command(tmp_path, 5000, auth=True)
    with pytest.raises(RegistryError, match="credentials") as caught:
        command(tmp_path, 5000, "postgresql://u:canary@host/db")
    assert "canary" not in str(caught.value)
    monkeypatch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", "canary-password")
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", "postgresql://u:canary@host/db")
    words, environment = command(tmp_path, 5000, artifacts="s3://bucket/prefix", auth=True)
    assert "canary" not in " ".join(words) and words[-2:] == ["--app-name", "basic-auth"]
    assert environment["MLFLOW_BACKEND_STORE_URI"] == "postgresql://u:canary@host/db"
    assert "canary" not in (tmp_path / "artifacts" / "registry" / "auth.ini").read_text()
    assert environment["MLFLOW_FLASK_SERVER_SECRET_KEY"] != command(tmp_path, 5000, auth=True)[1].get(
        "MLFLOW_FLASK_SERVER_SECRET_KEY"
    )


def test_without_the_password_nothing_is_answered(server, monkeypatch, workspace):
    for path in ("/api/2.0/mlflow/experiments/search?max_results=1", "/api/2.0/mlflow-artifacts/artifacts", "/"):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(server.uri + path)
        caught.value.close()
        assert caught.value.code == 401
    made = workspace("m")
    for name, value in (("MLFLOW_TRACKING_PASSWORD", "wrong"), ("MLFLOW_TRACKING_USERNAME", "")):
        monkeypatch.setenv(name, value)
        with pytest.raises(RegistryError, match="rejects these credentials"):
            publish(made.params, "m", made.root, tracking_uri=server.uri)


def test_it_listens_on_loopback_only_and_shows_no_password(server):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing; only asks which address would be used
        outside = probe.getsockname()[0]
    if not outside.startswith("127."):
        with pytest.raises(OSError):
            socket.create_connection((outside, server.port), timeout=2).close()
    shown = subprocess.run(["ps", "-eww", "-o", "args"], capture_output=True, text=True).stdout  # whole lines
    assert str(server.port) in shown and "canary-6f1d" not in shown


def test_foreign_sources_are_refused(server, workspace):
    from mlflow.exceptions import MlflowException

    made = workspace("source")
    done = publish(made.params, "source", made.root, tracking_uri=server.uri)
    client = connect(server.uri)
    run = f"runs:/{done.run_id}"
    for source in (
        "file:///etc",
        "/etc",
        "../../etc",
        f"{run}/published/../../../other",
        f"{run}/%2e%2e/%2e%2e/other",
        "s3://elsewhere/bucket",
        "mlflow-artifacts:/../etc",
        "http://elsewhere/table",
        f"runs:/{'0' * 32}/published",
    ):
        with pytest.raises(MlflowException):
            client.create_model_version(done.name, source, run_id=done.run_id)
    assert [str(v.version) for v in client.search_model_versions(f"name='{done.name}'")] == ["1"]


def test_artifacts_cannot_be_asked_for_outside_their_folder(server):
    import base64
    import os

    name = f"admin:{os.environ['MLFLOW_TRACKING_PASSWORD']}"
    header = {"Authorization": "Basic " + base64.b64encode(name.encode()).decode()}
    for path in ("../mlflow.db", "..%2Fmlflow.db", "%2e%2e/auth.db", "/etc/passwd", "%2Fetc%2Fpasswd"):
        request = urllib.request.Request(f"{server.uri}/api/2.0/mlflow-artifacts/artifacts/{path}", headers=header)
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request)
        caught.value.close()
        assert 400 <= caught.value.code < 500


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.5", "registry.example.org", "::"])
def test_other_hosts_are_let_in_with_a_password_only(tmp_path, host, monkeypatch):
    with pytest.raises(RegistryError, match="without a password"):
        command(tmp_path, 5000, host=host)
    monkeypatch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", "canary-password")
    words, environment = command(tmp_path, 5000, auth=True, host=host, names=["registry.example.org"])
    assert words[words.index("--host") + 1] == host
    assert "registry.example.org:*" in environment["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    for loopback in ("127.0.0.1", "localhost", "::1"):
        command(tmp_path, 5000, host=loopback)


def test_it_answers_to_its_own_names_and_its_own_pages_only(tmp_path):
    options = ["--auth", "--host", "0.0.0.0", "--allow-host", "registry.test"]
    with registry_server(tmp_path, *options, MLFLOW_AUTH_ADMIN_PASSWORD="canary-names") as (address, _):
        port = address.rpartition(":")[2]

        def status(host, origin):
            headers = {"Host": host, "Origin": origin} if origin else {"Host": host}
            url = f"{address}/ajax-api/2.0/mlflow/experiments/search"
            return httpx.post(url, json={"max_results": 1}, headers=headers, auth=("admin", "canary-names")).status_code

        ours = f"registry.test:{port}"
        assert (
            status(ours, None)
            == status(ours, f"http://{ours}")
            == status("registry.test", "https://registry.test")
            == 200
        )
        assert status(f"127.0.0.1:{port}", None) == 200
        assert status(f"elsewhere.test:{port}", None) == status(ours, "http://elsewhere.test") == 403
