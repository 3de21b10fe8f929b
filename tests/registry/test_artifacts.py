"""The files of runs without a server: beside the store, where a server of the same store serves them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from sparsemm.errors import RegistryError
from sparsemm.registry import artifacts
from sparsemm.registry.client import sqlite_uri
from sparsemm.registry.lookup import look_up
from sparsemm.registry.publish import publish
from tests.servers import registry_server


def client(folder, address):
    run = SimpleNamespace(info=SimpleNamespace(artifact_uri=address))
    return SimpleNamespace(tracking_uri=sqlite_uri(folder / "mlflow.db"), get_run=lambda _: run)


def test_files_and_folders_are_stored_and_copied_back(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "inner").mkdir(parents=True)
    (source / "inner" / "a.txt").write_text("a")
    ours = client(tmp_path, "mlflow-artifacts:/runs/1/artifacts")
    artifacts.upload(ours, "1", source, "published")
    assert (tmp_path / "files/runs/1/artifacts/published/inner/a.txt").read_text() == "a"
    assert artifacts.download(ours, "1", "published/inner/a.txt", target).read_text() == "a"
    assert (artifacts.download(ours, "1", "published", target) / "inner" / "a.txt").read_text() == "a"
    with pytest.raises(RegistryError, match="b.txt"):
        artifacts.download(ours, "1", "published/b.txt", target)


@pytest.mark.parametrize(
    "address", ["mlflow-artifacts:/../etc", "mlflow-artifacts:/runs/%2e%2e/x", "mlflow-artifacts://host/x"]
)
def test_addresses_that_leave_the_folder_are_refused(tmp_path, address):
    with pytest.raises(RegistryError, match="not beside the registry"):
        artifacts.download(client(tmp_path, address), "1", "a", tmp_path / "target")


def test_what_was_published_without_a_server_is_served_and_the_other_way_round(local, tmp_path):
    """`publish` and `registry serve` of one folder use one store, as README's commands do."""
    made = local("m")
    first = publish(made.params, "m", made.root)
    with registry_server(made.root) as (address, _):
        served = look_up("models:/visual-heads.m@candidate", tracking_uri=address, cache_dir=tmp_path / "a")
        assert served.resolved.version == first.version
        assert not publish(made.params, "m", made.root, tracking_uri=address).created
        made.ran("m", accuracy=0.8)
        second = publish(made.params, "m", made.root, tracking_uri=address)
        assert second.created and second.page == f"{address}/#/models/visual-heads.m/versions/2"
        picture = f"{address}/get-artifact?path=published%2Fheads.png&run_uuid={second.run_id}"
        from urllib.request import urlopen

        with urlopen(picture) as reply:
            assert reply.headers["content-type"] == "image/png" and reply.read(4) == b"\x89PNG"
    found = look_up("models:/visual-heads.m@candidate", tracking_uri=first.uri, cache_dir=tmp_path / "b")
    assert found.resolved.version == "2"
