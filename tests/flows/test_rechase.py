"""From an arrival to a promotion, with the stand-in's stages and a real registry."""

from __future__ import annotations

import shutil

import pytest
import yaml

from flows.pipeline import publish_model
from flows.rechase import look
from flows.rechase import rechase as flow
from flows.stages import model_stages
from sparsemm.errors import PipelineError, WatchError
from sparsemm.params import load_params
from sparsemm.registry.client import connect
from sparsemm.registry.promote import promote
from tests.watch.checkpoints import write_checkpoint

pytestmark = pytest.mark.usefixtures("gpu_slots")


@pytest.fixture(scope="session")
def empty_registry(tmp_path_factory):
    """A SQLite registry whose migrations, which take seconds, are done."""
    path = tmp_path_factory.mktemp("registry") / "mlflow.db"
    connect(f"sqlite:///{path}", create=True)
    return path


@pytest.fixture
def watched(repository, empty_registry, monkeypatch, tmp_path):
    """A watched folder for each model and one that does not exist, and a registry in a file; retries come at once."""
    path = repository.root / "params.yaml"
    params = yaml.safe_load(path.read_text())
    params["watch"] = {
        "gone": {"source": "folder", "location": "data/incoming/gone"},
        "two": {"source": "folder", "location": "data/incoming/two"},
        "one": {"source": "folder", "location": "data/incoming/one", "settle_seconds": 0.0},
    }
    path.write_text(yaml.safe_dump(params))
    repository.git("commit", "-qam", "watch")
    for key in ("one", "two"):
        (repository.root / "data" / "incoming" / key).mkdir(parents=True)
    for task in (look, model_stages, publish_model):
        monkeypatch.setattr(task, "retry_delay_seconds", 0)
    shutil.copy(empty_registry, tmp_path)
    monkeypatch.setenv("STAND_IN_TABLES", "1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return repository


def rechase(repository, **options):
    return flow(root=str(repository.root), **options)


def versions(tmp_path):
    """(version, whether it is champion) of every published version of "one"."""
    client = connect(f"sqlite:///{tmp_path}/mlflow.db")
    found = client.search_model_versions("name='visual-heads.one'")
    champion = client.get_registered_model("visual-heads.one").aliases.get("champion")
    return sorted((str(v.version), str(v.version) == str(champion)) for v in found)


def test_an_arrival_becomes_champion_once(watched, tmp_path):
    write_checkpoint(watched.root / "data" / "incoming" / "one" / "v1")
    (row,) = rechase(watched, watch="checkpoint.one")
    assert row["champion"] and row["created"] and versions(tmp_path) == [("1", True)]
    assert watched.called()["chase one"] == 1 and "two" not in str(row)
    (row,) = rechase(watched, watch="one")
    assert row["ran"] == "nothing" and not row["created"] and versions(tmp_path) == [("1", True)]
    assert not watched.called()
    write_checkpoint(watched.root / "data" / "incoming" / "one" / "v2", 2.0)
    (row,) = rechase(watched, watch="one")
    assert row["champion"] and versions(tmp_path) == [("1", False), ("2", True)]


def test_what_goes_wrong_with_one_model_does_not_stop_the_others(watched, tmp_path):
    """Neither a source that is gone nor a stage that fails."""
    write_checkpoint(watched.root / "data" / "incoming" / "one" / "v1")
    (watched.told / "fail").write_text("chase two")
    with pytest.raises(PipelineError, match="two failed"):
        rechase(watched)
    assert versions(tmp_path) == [("1", True)]
    with pytest.raises(WatchError, match="data/incoming/gone"):
        rechase(watched, watch="gone")


def test_a_refused_candidate_stays_candidate_and_says_why(watched, tmp_path):
    path = watched.root / "params.yaml"
    params = yaml.safe_load(path.read_text())
    params["registry"]["gate"]["min_accuracy_ratio"] = 0.99
    path.write_text(yaml.safe_dump(params))
    watched.git("commit", "-qam", "a strict gate")
    write_checkpoint(watched.root / "data" / "incoming" / "one" / "v1")
    (row,) = rechase(watched, watch="one")
    assert not row["champion"] and versions(tmp_path) == [("1", False)]
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        gates = [a for a in client.read_latest_artifacts(limit=200) if a.key == "gate-one"]
    assert "stays candidate" in str(gates[0].data) and "FAIL" in str(gates[0].data)


def test_runs_are_named_by_model_and_revision_and_a_refusal_is_reported_once(watched, tmp_path, monkeypatch):
    path = watched.root / "params.yaml"
    params = yaml.safe_load(path.read_text())
    params["registry"]["gate"]["min_accuracy_ratio"] = 0.99
    path.write_text(yaml.safe_dump(params))
    watched.git("commit", "-qam", "a strict gate")
    events = []
    monkeypatch.setattr("flows.rechase.emit_event", lambda *arguments, **options: events.append((arguments, options)))
    write_checkpoint(watched.root / "data" / "incoming" / "one" / "v1")
    for _ in range(2):
        (row,) = rechase(watched, watch="one")
        assert not row["champion"] and row["page"].endswith("/#/models/visual-heads.one/versions/1")
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        names = [run.name for run in client.read_flow_runs(limit=200)]
    revision = load_params(path).models["one"].revision
    assert {f"rechase one {revision[:12]}", "rechase one: nothing new"} <= set(names)
    ((event, resource), options), *others = events
    assert event == "gate.refused" and resource["prefect.resource.id"] == "sparsemm.model.one" and not others
    assert options["payload"]["version"] == "1" and "FAIL" in options["payload"]["reasons"]


def test_a_run_that_does_what_a_stopped_one_left_is_named_by_what_it_did(watched):
    """It says "nothing new" only where nothing was left, and not while it runs."""
    from prefect.client.orchestration import get_client

    write_checkpoint(watched.root / "data" / "incoming" / "one" / "v1")
    (watched.told / "fail").write_text("chase one")
    with pytest.raises(PipelineError, match="one failed"):
        rechase(watched, watch="one")
    (watched.told / "fail").unlink()
    with get_client(sync_client=True) as client:
        before = {run.id for run in client.read_flow_runs(limit=200)}
        (row,) = rechase(watched, watch="one")
        names = [run.name for run in client.read_flow_runs(limit=200) if run.id not in before]
    revision = load_params(watched.root / "params.yaml").models["one"].revision
    assert row["created"] and names == [f"rechase one {revision[:12]}"]


def test_the_link_to_the_report_opens_on_the_registrys_pages(watched):
    from prefect.client.orchestration import get_client

    from flows.pipeline import pipeline

    row, _ = pipeline(root=str(watched.root))
    with get_client(sync_client=True) as client:
        links = [a.data for a in client.read_latest_artifacts(limit=200) if a.key == "report"]
    assert row["report"] in links[0]
    assert row["report"].startswith("http://127.0.0.1:5000/#/experiments/1/runs/")
    assert row["report"].endswith("/artifacts/published/report/index.html")


def test_a_registry_that_is_down_costs_no_results(watched, tmp_path, monkeypatch):
    """They are committed; the next run publishes them, once."""
    write_checkpoint(watched.root / "data" / "incoming" / "one" / "v1")
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        with pytest.raises(PipelineError, match="one failed: http://127.0.0.1:9"):
            rechase(watched, watch="one")
    assert "chase@one" in watched.git("show", "HEAD:dvc.lock")
    watched.called()
    (row,) = rechase(watched, watch="one")
    assert row["created"] and not watched.called() and versions(tmp_path) == [("1", True)]
    done = promote(load_params(watched.root / "params.yaml"), "one", watched.root)
    assert not done.moved
