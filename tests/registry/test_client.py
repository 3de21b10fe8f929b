"""Which registry it is, and what is told when it does not answer."""

from __future__ import annotations

import socket

import pytest

from sparsemm.errors import RegistryError, RegistryUnreachable
from sparsemm.params.registry import GateParams
from sparsemm.registry.client import connect, default_store, model_name, registry_uri, sqlite_file, sqlite_uri


def test_argument_then_params_then_environment_then_sqlite(workspace, monkeypatch):
    made = workspace("m")
    assert registry_uri(None, made.params, made.root) == default_store(made.root)
    assert default_store(made.root) == f"sqlite:///{made.root}/artifacts/registry/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://from-environment:1")
    assert registry_uri(None, made.params, made.root) == "http://from-environment:1"
    registry = made.params.registry.model_copy(update={"tracking_uri": "http://from-params:1"})
    params = made.params.model_copy(update={"registry": registry})
    assert registry_uri(None, params, made.root) == "http://from-params:1"
    assert registry_uri("sqlite:///given.db", params, made.root) == "sqlite:///given.db"
    assert isinstance(registry.gate, GateParams)


@pytest.mark.parametrize(
    "uri",
    [
        "http://user:canary@host:5000",
        "https://canary@host",
        "http://:canary@host",
        "postgresql://user:canary@host/db",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///what?/canary.db",
        "sqlite:///file:canary.db?mode=ro&uri=true",
        "file:///tmp/canary",
        "/tmp/canary",
        "http://",
        "http://[canary",
    ],
)
def test_addresses_that_are_not_used_are_refused_without_repeating_their_secret(uri):
    with pytest.raises(RegistryError) as caught:
        registry_uri(uri)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("name", ["what?", "a blank", "#1", "100%25%", "'q\"", "[a]*", "ü😀", "file:x"])
def test_the_registry_is_in_its_folder_whatever_that_is_called(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)  # where a path that is not understood would end up
    root = tmp_path / name
    uri = default_store(root)
    assert sqlite_file(uri) == root / "artifacts" / "registry" / "mlflow.db" and registry_uri(uri) == uri
    assert sqlite_file(sqlite_uri(tmp_path / "plain.db")) == tmp_path / "plain.db"
    if "?" in name:  # the others differ in nothing that MLflow could take for something else
        client = connect(uri, create=True)
        client.create_registered_model("visual-heads.m")
        assert [p.name for p in tmp_path.iterdir()] == [name]
        again = connect(registry_uri(uri.replace("+pysqlite", "")))  # as people may have written it
        assert [p.name for p in tmp_path.iterdir()] == [name]
        assert again.get_registered_model("visual-heads.m").name == "visual-heads.m"


def test_nobody_there_and_silence_are_told_soon(monkeypatch):
    with pytest.raises(RegistryUnreachable, match="does not answer"):
        connect("http://127.0.0.1:9")
    with pytest.raises(RegistryUnreachable, match="does not answer"):
        connect("http://no-such-host.invalid")
    monkeypatch.setattr("sparsemm.registry.client.PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(RegistryUnreachable, match="timed out"):
        connect(f"http://127.0.0.1:{silent.getsockname()[1]}")


@pytest.mark.parametrize("key", ["", "a.lock", "../a", "a b", "a'", "a/1", "x@y"])
def test_keys_that_params_would_refuse_name_no_model(key):
    with pytest.raises(RegistryError, match="not a model key"):
        model_name(key)
