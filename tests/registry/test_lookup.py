"""Look-up: verified, cached, and still there when the registry is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import sparsemm
from sparsemm.errors import RegistryError, RegistryUnreachable, ScoreTableError
from sparsemm.files import sha256_file
from sparsemm.registry.client import connect, default_store
from sparsemm.registry.lookup import look_up, resolve
from sparsemm.registry.promote import promote
from sparsemm.registry.publish import publish
from sparsemm.scores import ScoreTable

CHAMPION = "models:/visual-heads.m@champion"


@pytest.fixture
def made(local, monkeypatch):
    """A workspace with a champion in a SQLite registry that MLFLOW_TRACKING_URI names."""
    workspace = local("m")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", default_store(workspace.root))
    publish(workspace.params, "m", workspace.root)
    promote(workspace.params, "m", workspace.root)
    return workspace


def own(workspace):
    return workspace.root / "artifacts" / "scores" / "m.safetensors"


def same(a, b):
    return (a.scores == b.scores).all() and (a.per_sample == b.per_sample).all() and a.header == b.header


def test_a_path_is_read_without_a_registry(workspace):
    made = workspace("m")
    table = sparsemm.load_scores(own(made), "print-m")
    assert same(table, ScoreTable.load(own(made)))
    with pytest.raises(ScoreTableError, match="another config"):
        sparsemm.load_scores(own(made), "print-of-another")


def test_the_champion_is_found_verified_and_followed(made):
    found = look_up(CHAMPION)
    assert same(found.table, ScoreTable.load(own(made)))
    assert found.resolved == resolve(CHAMPION) == resolve("models:/visual-heads.m/1")
    assert found.resolved.digest == sha256_file(own(made)) == sha256_file(found.path)
    made.ran("m", noise=0.01)
    publish(made.params, "m", made.root)
    assert resolve(CHAMPION).version == "1"
    promote(made.params, "m", made.root)
    assert resolve(CHAMPION).version == "2" and same(sparsemm.load_scores(CHAMPION), ScoreTable.load(own(made)))
    assert not same(sparsemm.load_scores("models:/visual-heads.m/1"), ScoreTable.load(own(made)))


def test_another_process_needs_only_the_tracking_uri(made, tmp_path):
    code = f"import sparsemm; print(sparsemm.load_scores({CHAMPION!r}, 'print-m').scores.sum())"
    root = str(Path(__file__).parent.parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": root},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == float(ScoreTable.load(own(made)).scores.sum())


def test_a_foreign_fingerprint_is_refused(made):
    assert sparsemm.load_scores(CHAMPION, "print-m")
    with pytest.raises(ScoreTableError, match="another config"):
        sparsemm.load_scores(CHAMPION, "print-of-another")


@pytest.mark.parametrize(
    "source",
    [
        "models:/visual-heads.m",
        "models:/../../etc/passwd/1",
        "models:/visual-heads.m@../x",
        "models:/visual-heads.m/latest",
        "models://host/visual-heads.m/1",
        "models:/" + "x" * 10_000 + "@champion ",
    ],
)
def test_what_is_no_address_is_refused(source):
    with pytest.raises(RegistryError, match="not a registry address"):
        sparsemm.load_scores(source)


def test_what_is_not_there_is_told(made):
    for source in ("models:/visual-heads.m@nobody", "models:/visual-heads.m/9", "models:/visual-heads.x@champion"):
        with pytest.raises(RegistryError, match="no such version"):
            resolve(source)


def test_without_any_registry_nothing_is_created(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RegistryError, match="no registry found"):
        sparsemm.load_scores(CHAMPION)
    assert not (tmp_path / "artifacts").exists()


def test_the_cache_serves_when_the_registry_is_down(wire, workspace, caplog):
    made = workspace("down")
    address = "models:/visual-heads.down@champion"
    publish(made.params, "down", made.root, tracking_uri=wire.uri)
    promote(made.params, "down", made.root, tracking_uri=wire.uri)
    online = look_up(address, tracking_uri=wire.uri)
    wire.cut()
    with caplog.at_level("WARNING", "sparsemm"):
        offline = look_up(address, tracking_uri=wire.uri)
    assert same(offline.table, online.table) and offline.resolved == online.resolved
    assert "serving models:/visual-heads.down@champion from the cache" in caplog.text
    assert same(sparsemm.load_scores(address, tracking_uri=wire.uri, offline=True), online.table)
    with pytest.raises(RegistryUnreachable):
        resolve(address, tracking_uri=wire.uri)
    with pytest.raises(RegistryUnreachable):  # an address the cache does not know
        sparsemm.load_scores("models:/visual-heads.down/1", tracking_uri=wire.uri)
    with pytest.raises(RegistryUnreachable):  # another registry
        sparsemm.load_scores(address, tracking_uri="http://127.0.0.1:9")


def test_files_that_cannot_be_fetched_fall_back_to_the_former_champion(made, caplog, monkeypatch):
    from requests import ConnectionError

    from sparsemm.registry import artifacts

    before = look_up(CHAMPION)
    made.ran("m", noise=0.01)
    publish(made.params, "m", made.root)
    promote(made.params, "m", made.root)

    def broken(*arguments):
        raise ConnectionError("the store is away")

    monkeypatch.setattr(artifacts, "download", broken)
    assert look_up(CHAMPION).resolved == before.resolved and "the store is away" in caplog.text


def test_a_version_that_is_gone_is_not_served_from_the_cache(made):
    sparsemm.load_scores(CHAMPION)
    connect(default_store(made.root)).delete_registered_model_alias("visual-heads.m", "champion")
    with pytest.raises(RegistryError, match="no such version"):
        sparsemm.load_scores(CHAMPION)


def test_a_damaged_cache_entry_is_fetched_again_or_refused(made, caplog):
    found = look_up(CHAMPION)
    for damage in (b"", found.path.read_bytes()[:-1] + b"!", b"x" * 10_000_000):
        found.path.write_bytes(damage)
        with pytest.raises(RegistryUnreachable, match="damaged"):
            sparsemm.load_scores(CHAMPION, offline=True)
        assert same(look_up(CHAMPION).table, found.table) and sha256_file(found.path) == found.resolved.digest
    assert "is damaged" in caplog.text


@pytest.mark.parametrize("content", ["", "[]", '{"name": 1}', '{"name": "a", "version": "1", "digest": "../../x"}'])
def test_a_damaged_pointer_is_written_again_or_refused(made, content):
    cache = look_up(CHAMPION).path.parent.parent
    (pointer,) = (cache / "pointers").rglob("*.json")
    good = json.loads(pointer.read_text())
    pointer.write_text(content)
    with pytest.raises(RegistryUnreachable):
        sparsemm.load_scores(CHAMPION, offline=True)
    sparsemm.load_scores(CHAMPION)
    assert json.loads(pointer.read_text())["digest"] == good["digest"]


def test_without_a_registry_or_an_earlier_look_up_one_is_told_what_to_start(made, tmp_path):
    with pytest.raises(RegistryUnreachable, match="no earlier look-up is stored.*sparsemm registry serve"):
        sparsemm.load_scores(CHAMPION, cache_dir=tmp_path / "empty", offline=True)


def test_a_cache_that_cannot_be_written_is_told(made, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(RegistryError, match="the cache cannot be used"):
        sparsemm.load_scores(CHAMPION, cache_dir=tmp_path / "file")


def test_many_threads_may_look_up_at_once(made):
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(look_up, [CHAMPION] * 32))
    assert {one.resolved for one in found} == {resolve(CHAMPION)}
    assert not [p for p in found[0].path.parent.parent.rglob("*") if p.name.startswith(".")]


@pytest.mark.parametrize("name", ["scores/m.safetensors", "manifest.json"])
def test_tampered_or_missing_artifacts_are_refused_and_not_cached(made, name, tmp_path):
    (path,) = (made.root / "artifacts" / "registry" / "files").rglob(name)
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(RegistryError, match="that was published"):
        sparsemm.load_scores(CHAMPION)
    path.unlink()
    with pytest.raises(RegistryError):
        sparsemm.load_scores(CHAMPION)
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]


def test_a_version_that_points_elsewhere_is_refused(made):
    client = connect(default_store(made.root))
    version = client.get_model_version("visual-heads.m", "1")
    run = client.create_run(client.get_experiment_by_name("sparsemm").experiment_id)
    for source, tags in (
        (f"runs:/{run.info.run_id}/published", version.tags),
        (f"runs:/{version.run_id}/published/../../other", version.tags),
        (version.source, {**version.tags, "manifest_sha256": ""}),
        (version.source, {**version.tags, "table_sha256": "0" * 63}),
        (version.source, {**version.tags, "table_sha256": "0" * 64}),
    ):
        made_up = client.create_model_version("visual-heads.m", source, run_id=version.run_id, tags=tags)
        with pytest.raises(RegistryError, match="not created by|different files"):
            sparsemm.load_scores(f"models:/visual-heads.m/{made_up.version}")
