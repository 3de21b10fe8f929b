"""Publishing: once, whole or not at all, whatever is cut off when."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from sparsemm.errors import RegistryError, RegistryUnreachable
from sparsemm.registry import artifacts, manifest
from sparsemm.registry.client import connect, default_store
from sparsemm.registry.publish import publish

POINTS = {
    "found": ("search_model_versions", "before"),
    "begun": ("create_run", "after"),
    "noted": ("log_batch", "after"),
    "stored": ("upload", "after"),
    "finished": ("set_terminated", "after"),
    "almost": ("create_model_version", "before"),
    "versioned": ("create_model_version", "after"),
}


def whole(client, key, folder):
    """The one version of a model, every file of it checked; nothing else is left of its publications."""
    name = f"visual-heads.{key}"
    (version,) = client.search_model_versions(f"name='{name}'")
    listed = manifest.fetch(client, version.run_id, version.tags["manifest_sha256"], None, folder)
    assert {"scores", "budgets", "evaluate", "profile", "align", "provenance.json", "heads.png"} == {
        path.split("/")[0] for path in listed["files"]
    }
    experiment = client.get_experiment_by_name("sparsemm").experiment_id
    (run,) = client.search_runs([experiment], f"tags.key = '{key}'")
    assert run.info.run_id == version.run_id and run.info.status == "FINISHED"
    assert not [m for m in client.search_registered_models() if m.name == f"{name}.lock"]
    return version, run


def test_a_publication_can_be_found_and_has_everything(local, tmp_path):
    made = local("m")
    done = publish(made.params, "m", made.root, flow_run="flow-7")
    assert done.created and (done.name, done.version) == ("visual-heads.m", "1")
    client = connect(default_store(made.root))
    version, run = whole(client, "m", tmp_path)
    assert version.source == f"runs:/{done.run_id}/published"
    assert version.tags["checkpoint_revision"] == "r1" and version.tags["fingerprint"] == "print-m"
    for search in (f"tags.stage_hash = '{done.stage_hash}'", "tags.checkpoint_revision = 'r1'"):
        assert [v.version for v in client.search_model_versions(search)] == [version.version]
    assert run.data.metrics["accuracy/read/full"] == 0.95 and run.data.metrics["cost/full/kept_bytes"] == 64
    assert "accuracy/read/sparsemm with peak" in run.data.metrics  # MLflow refuses a plus
    curve = client.get_metric_history(done.run_id, "accuracy/read/sparsemm")
    assert sorted((point.step, point.value) for point in curve) == [(12, 0.9), (24, 0.9), (48, 0.9)]
    assert run.info.run_name == "m v1: checkpoint r1, commit unknown"
    assert run.data.params["model/checkpoint"] == "a/m" and run.data.params["allocate/budgets"] == "[12, 24, 48]"
    provenance = json.loads((tmp_path / "provenance.json").read_text())
    assert (tmp_path / "scores" / "m.covariates.csv").read_text() == "covariate,bin\nkind,word\n"
    assert provenance["flow_run"] == "flow-7" and provenance["gpu"] is None and provenance["packages"]["mlflow"]
    assert set(provenance["dvc_stages"]) == {f"{s}@m" for s in ("align", "chase", "allocate", "evaluate", "profile")}
    assert client.get_model_version_by_alias("visual-heads.m", "candidate").version == version.version


def test_the_same_results_are_published_once_and_other_results_again(local):
    made = local("m")
    first = publish(made.params, "m", made.root)
    again = publish(made.params, "m", made.root)
    assert (again.version, again.run_id, again.created) == (first.version, first.run_id, False)
    made.ran("m", accuracy=0.8)
    second = publish(made.params, "m", made.root)
    assert second.created and second.version == "2" and second.stage_hash != first.stage_hash


def test_duplicates_made_behind_its_back_are_removed(local):
    made = local("m")
    first = publish(made.params, "m", made.root)
    client = connect(default_store(made.root))
    tags = client.get_model_version(first.name, first.version).tags
    client.create_model_version(first.name, f"runs:/{first.run_id}/published", run_id=first.run_id, tags=tags)
    assert len(client.search_model_versions(f"name='{first.name}'")) == 2
    assert publish(made.params, "m", made.root).version == "1"
    assert [str(v.version) for v in client.search_model_versions(f"name='{first.name}'")] == ["1"]


def test_a_request_that_the_transport_sends_twice_makes_one_version(local, monkeypatch, tmp_path):
    from mlflow import MlflowClient

    made = local("m")
    real = MlflowClient.create_model_version

    def twice(self, *arguments, **options):
        real(self, *arguments, **options)
        return real(self, *arguments, **options)

    monkeypatch.setattr(MlflowClient, "create_model_version", twice)
    assert publish(made.params, "m", made.root).created
    whole(connect(default_store(made.root)), "m", tmp_path)


@pytest.mark.parametrize("key", ["one-host", "two-hosts"])
def test_two_publishers_at_once_make_one_version(server, workspace, script, tmp_path, key):
    made = workspace(key)
    caches = tmp_path / "a", tmp_path / ("b" if key == "two-hosts" else "a")
    reports = script("both", made.root, server.uri, "publish", key, *caches)
    assert sorted(report["created"] for report in reports) == [False, True]
    assert len({(report["version"], report["run_id"]) for report in reports}) == 1
    folder = tmp_path / "back"
    folder.mkdir()
    whole(connect(server.uri), key, folder)


def test_killed_anywhere_the_next_publication_is_whole_and_the_only_one(server, workspace, script, tmp_path):
    made = workspace(*POINTS)
    script("kill", made.root, server.uri, *(f"{key}:{method}:{when}" for key, (method, when) in POINTS.items()))
    client = connect(server.uri)
    for key in POINTS:
        there = [v for v in client.search_model_versions() if v.name == f"visual-heads.{key}"]
        assert len(there) == (key == "versioned")
        done = publish(made.params, key, made.root, tracking_uri=server.uri)
        assert done.created == (key != "versioned")
        folder = tmp_path / key
        folder.mkdir()
        version, _ = whole(client, key, folder)
        assert client.get_model_version_by_alias(done.name, "candidate").version == version.version


def test_a_registry_that_goes_down_meanwhile_costs_nothing_but_the_next_call(wire, server, workspace, tmp_path):
    made = workspace("cut")
    before = {p: p.read_bytes() for p in made.root.rglob("*") if p.is_file()}
    wire.cut()
    with pytest.raises(RegistryUnreachable):
        publish(made.params, "cut", made.root, tracking_uri=wire.uri)
    for requests in (2, 6, 9, 14, 20):
        wire.mend(requests)
        with pytest.raises(RegistryUnreachable):
            publish(made.params, "cut", made.root, tracking_uri=wire.uri)
        wire.cut()
    assert connect(server.uri).search_model_versions("name='visual-heads.cut'") == []
    wire.mend()
    assert publish(made.params, "cut", made.root, tracking_uri=wire.uri).created
    whole(connect(server.uri), "cut", tmp_path)
    assert {p: p.read_bytes() for p in made.root.rglob("*") if p.is_file()} == before


def test_an_experiment_on_somebodys_local_disk_is_refused(server, workspace, tmp_path):
    made = workspace("elsewhere")
    made.raw["registry"]["experiment"] = "local"
    made.ran("elsewhere")
    client = connect(server.uri)
    client.create_experiment("local", artifact_location=(tmp_path / "disk").as_uri())
    with pytest.raises(RegistryError, match="local disks"):
        publish(made.params, "elsewhere", made.root, tracking_uri=server.uri)
    assert not (tmp_path / "disk").exists()


def test_what_the_store_spoils_is_not_published(local, monkeypatch):
    made = local("m")
    real = artifacts.upload

    def spoilt(client, run_id, folder, path):
        table = folder / "evaluate" / "m.csv"
        table.write_bytes(table.read_bytes()[:-1] + b"!")
        real(client, run_id, folder, path)

    monkeypatch.setattr(artifacts, "upload", spoilt)
    with pytest.raises(RegistryError, match="evaluate/m.csv: not the file"):
        publish(made.params, "m", made.root)
    client = connect(default_store(made.root))
    assert client.search_model_versions("name='visual-heads.m'") == []
    monkeypatch.undo()
    assert publish(made.params, "m", made.root).version == "1"


def test_never_run_edited_and_stale_results_are_refused_before_any_registry_is_asked(workspace):
    made = workspace("m")
    (made.root / "artifacts/evaluate/m.json").write_text("{}")
    with pytest.raises(RegistryError, match="evaluate/m.json: differs from what the stage wrote"):
        publish(made.params, "m", made.root, tracking_uri="http://127.0.0.1:9")
    (made.root / "artifacts/evaluate/m.json").unlink()
    with pytest.raises(RegistryError, match="evaluate/m.json: cannot be read"):
        publish(made.params, "m", made.root, tracking_uri="http://127.0.0.1:9")
    made.ran("m")
    made.raw["chase"]["prompt"] = "Read."
    (made.root / "params.yaml").write_text(json.dumps(made.raw))
    with pytest.raises(RegistryError, match="ran with another value of chase"):
        publish(made.params, "m", made.root, tracking_uri="http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("evaluate/m.json", "[]"),
        ("scores/m.json", "{"),
        ("profile/m.csv", "a,b\n1,2\n"),
        ("profile/m.csv", "method,prompt_length,prefill_ms,decode_ms_per_token,kept_bytes\nfull,1,x,2,3\n"),
        ("profile/m.json", "[]"),
    ],
)
def test_tables_that_no_stage_writes_are_refused(workspace, name, content):
    made = workspace("m")
    (made.root / "artifacts" / name).write_text(content)
    made.lock("m")
    with pytest.raises(RegistryError, match="malformed"):
        publish(made.params, "m", made.root, tracking_uri="http://127.0.0.1:9")


def test_a_report_goes_along_only_if_it_is_of_these_tables(local, tmp_path):
    from sparsemm.registry.lockfile import md5_of

    made = local("m")
    report = made.root / "artifacts/report"
    (report / "plots").mkdir(parents=True)
    (report / "plots" / "a.csv").write_text("panel")
    (report / "index.html").write_text("<p>old")

    def files():
        done = publish(made.params, "m", made.root)
        client = connect(default_store(made.root))
        version = client.get_model_version(done.name, done.version)
        folder = tmp_path / done.version
        folder.mkdir()
        return manifest.fetch_version(client, version, [], folder)["files"]

    assert not [name for name in files() if "report" in name]  # the report stage never ran
    made.ran("m", accuracy=0.91)
    import yaml

    lock = yaml.safe_load((made.root / "dvc.lock").read_text())
    here = [{"path": f"artifacts/{n}", "md5": md5_of(made.root / "artifacts" / n)} for n in ("report", "scores")]
    lock["stages"]["report"] = {"cmd": "sparsemm report", "deps": here[1:], "outs": here[:1]}
    (made.root / "dvc.lock").write_text(yaml.safe_dump(lock))
    assert [name for name in files() if "report" in name] == ["report/index.html"]
    made.ran("m", noise=0.1)  # other scores than the report was made from
    assert not [name for name in files() if "report" in name]


def test_no_secret_gets_into_the_registry_or_a_log(server, workspace, monkeypatch, tmp_path, caplog):
    canary = "canary-77-token"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", canary)
    monkeypatch.setenv("HF_TOKEN", canary)
    made = workspace("quiet")
    with caplog.at_level("DEBUG"):
        done = publish(made.params, "quiet", made.root, tracking_uri=server.uri)
        with pytest.raises(RegistryError, match="credentials") as caught:
            publish(made.params, "quiet", made.root, tracking_uri=f"http://admin:{canary}@127.0.0.1:{server.port}")
    client = connect(server.uri)
    run, version = client.get_run(done.run_id), client.get_model_version(done.name, done.version)
    texts = [caplog.text, str(caught.value), repr(run), repr(version), server.log.read_text()]
    texts += [str({**run.data.params, **run.data.tags, **version.tags})]
    shutil.copytree(server.files, tmp_path / "files")
    contents = [p.read_bytes() for p in (tmp_path / "files").rglob("*") if p.is_file()]
    contents += [p.read_bytes() for p in (server.root / "artifacts" / "registry").rglob("*.ini")]
    assert len(contents) > 5
    for word in (canary, os.environ["MLFLOW_TRACKING_PASSWORD"]):
        assert not [t for t in texts if word in t] and not [c for c in contents if word.encode() in c]
