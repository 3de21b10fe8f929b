import pytest

from sparsemm.errors import ParamsError, PipelineError
from sparsemm.pipeline.plan import stages

pytestmark = pytest.mark.usefixtures("gpu_slots")


def run(repository, **options):
    from flows.pipeline import pipeline

    return pipeline(root=str(repository.root), publish=False, **options)


def artifacts():
    """Data of the server's artifacts by their keys."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return {artifact.key: artifact.data for artifact in client.read_latest_artifacts(limit=200)}


def test_everything_stale_runs_once_and_nothing_the_second_time(repository):
    rows = run(repository)
    assert rows == [{"model": key, "ran": ", ".join(stages(repository.root))} for key in ("one", "two")]
    assert set(repository.called().values()) == {1}
    assert "Results of one, two" in repository.git("log", "-1", "--format=%s")
    shown = artifacts()
    assert {"plan", "results", "progress-one", "progress-two"} <= shown.keys()
    assert shown["picture-one"] == "data:image/png;base64,b25l" and shown["picture-two"] != shown["picture-one"]
    before = repository.git("rev-parse", "HEAD")
    assert [row["ran"] for row in run(repository)] == ["nothing", "nothing"]
    assert not repository.called() and repository.git("rev-parse", "HEAD") == before


def test_one_model_that_fails_does_not_hold_the_others_up(repository, monkeypatch):
    monkeypatch.setattr("flows.stages.model_stages.retry_delay_seconds", 0)
    (repository.told / "fail").write_text("chase one")
    with pytest.raises(PipelineError, match="one failed"):
        run(repository)
    assert repository.called()["profile two"] == 1
    assert "chase@two" in repository.git("show", "HEAD:dvc.lock") and "chase@one" not in repository.git(
        "show", "HEAD:dvc.lock"
    )
    (repository.told / "fail").unlink()
    run(repository)
    assert repository.called()["align one"] == 0  # kept from the run that failed
    run(repository)
    assert not repository.called()


def test_one_model_of_several(repository):
    rows = run(repository, models=["two"])
    assert [row["model"] for row in rows] == ["two"]
    assert {call.split()[-1] for call in repository.called() if "download" not in call} == {"two"}


def test_unknown_models_and_uncommitted_changes_are_refused(repository):
    with pytest.raises(ParamsError, match="no model 'three'"):
        run(repository, models=["three"])
    (repository.root / "sparsemm" / "budgets.py").write_text("# edited")
    with pytest.raises(PipelineError, match="uncommitted"):
        run(repository)
    assert not repository.called()


def test_a_run_that_crashes_is_begun_three_times_and_no_more(repository, monkeypatch):
    from flows.pipeline import pipeline
    from flows.rechase import rechase
    from flows.stages import evaluate, model

    monkeypatch.setenv("PREFECT__RUNTIME__FLOW_RUN__RUN_COUNT", "3")
    with pytest.raises(ParamsError, match="no model 'three'"):  # it goes on to its arguments
        run(repository, models=["three"])
    monkeypatch.setenv("PREFECT__RUNTIME__FLOW_RUN__RUN_COUNT", "4")
    for begin in (pipeline, rechase, lambda: model("one"), lambda: evaluate("one")):
        with pytest.raises(PipelineError, match="crashed 3 times"):
            begin()
    assert not repository.called()


def test_single_stages_have_flows_of_their_own(repository):
    from flows.stages import evaluate, profile

    evaluate("one", root=str(repository.root))
    assert set(repository.called()) == {
        "download calibration", "download evaluation", "align one", "chase one", "allocate one", "evaluate one",
    }  # fmt: skip
    profile("one", root=str(repository.root))
    assert set(repository.called()) == {"profile one"}
    assert repository.git("log", "-1", "--format=%s").strip() == "one: profile"


def test_without_the_limit_nothing_runs(repository):
    from prefect.client.orchestration import get_client

    from flows.stages import model

    with get_client(sync_client=True) as client:
        client.delete_global_concurrency_limit_by_name("gpu")
    with pytest.raises(Exception, match="gpu"):
        model("one", root=str(repository.root))
    assert not repository.called()
