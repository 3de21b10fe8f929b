import pytest

from sparsemm.errors import WatchError
from sparsemm.models import content_revision
from sparsemm.params import WatchParams
from sparsemm.watch import newest
from tests.watch.checkpoints import write_checkpoint


@pytest.mark.parametrize("location", ["models:/", "models:/name", "name@champion"])
def test_a_location_of_another_kind_is_refused(location, tmp_path):
    with pytest.raises(WatchError, match="models:/name@alias"):
        newest(WatchParams(source="mlflow", location=location), "k", tmp_path)


def test_the_version_behind_an_alias_is_fetched(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.set_tracking_uri(None)
    client = mlflow.MlflowClient()
    experiment = client.create_experiment("checkpoints", artifact_location=str(tmp_path / "store"))
    run = client.create_run(experiment).info.run_id
    source = write_checkpoint(tmp_path / "source", 3.0)
    client.log_artifacts(run, str(source), "checkpoint")
    client.create_registered_model("mine")
    client.create_model_version("mine", f"runs:/{run}/checkpoint", run)
    client.set_registered_model_alias("mine", "ready", "1")
    for location in ("models:/mine@ready", "models:/mine/1"):
        found = newest(WatchParams(source="mlflow", location=location), "k", tmp_path)
        assert found.checkpoint == "data/incoming/k/v1" and found.revision == content_revision(source)
    with pytest.raises(WatchError, match="alias gone not found"):
        newest(WatchParams(source="mlflow", location="models:/mine@gone"), "k", tmp_path)
