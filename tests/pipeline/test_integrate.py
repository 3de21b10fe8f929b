import threading

import pytest
import yaml

from sparsemm.errors import PipelineError
from sparsemm.pipeline.integrate import commit, integrate, results_branch


def test_results_are_committed_once(repository):
    made = integrate(repository.root, [], "Results")
    assert made == repository.git("rev-parse", "HEAD").strip()
    tracked = repository.git("show", "--name-only", "--format=", "HEAD").split()
    assert "dvc.lock" in tracked and "artifacts/scores/one.json" in tracked
    assert not [name for name in tracked if name.endswith((".parquet", ".safetensors"))]
    assert integrate(repository.root, [], "Results") is None
    assert sum(repository.called().values()) == 15


def test_two_integrators_at_once_do_the_work_once(repository):
    made = []
    threads = [threading.Thread(target=lambda: made.append(integrate(repository.root, [], "R"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(commit is None for commit in made) == [False, True]
    assert sum(repository.called().values()) == 15


def test_a_failing_stage_commits_nothing(repository):
    before = repository.git("rev-parse", "HEAD")
    (repository.told / "fail").write_text("profile two")
    with pytest.raises(PipelineError, match="told to fail"):
        integrate(repository.root, [], "Results")
    assert repository.git("rev-parse", "HEAD") == before


def test_commit_takes_only_what_it_is_told(repository):
    (repository.root / "mine.txt").write_text("x")
    (repository.root / "other.txt").write_text("y")
    repository.git("add", "other.txt")
    assert commit(repository.root, ["mine.txt"], "mine") is not None
    assert repository.git("show", "--name-only", "--format=", "HEAD").split() == ["mine.txt"]
    assert "A  other.txt" in repository.git("status", "--short")
    assert commit(repository.root, ["mine.txt"], "mine") is None


def test_without_an_identity_a_worker_can_still_commit(repository, tmp_path, monkeypatch):
    repository.git("config", "--unset", "user.email")
    repository.git("config", "--unset", "user.name")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "none"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    (repository.root / "mine.txt").write_text("x")
    assert commit(repository.root, ["mine.txt"], "mine") is not None
    assert "sparsemm@localhost" in repository.git("log", "-1", "--format=%ae")


def name_branch(repository, branch):
    path = repository.root / "params.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"pipeline": {"branch": branch}}))
    repository.commit("branch")


def test_without_a_name_it_is_the_one_that_is_checked_out(repository):
    assert results_branch(repository.root) == "main"
    repository.git("switch", "-qc", "results")
    assert results_branch(repository.root) == "results"


def test_another_branch_is_refused_before_anything_runs(repository):
    name_branch(repository, "results")
    before = repository.git("rev-parse", "HEAD")
    with pytest.raises(PipelineError, match="branch main is checked out, but results go to results"):
        integrate(repository.root, [], "Results")
    assert not repository.called() and repository.git("rev-parse", "HEAD") == before
    repository.git("switch", "-qc", "results")
    integrate(repository.root, ["allocate@one"], "Results")
    assert repository.git("rev-parse", "main") == before != repository.git("rev-parse", "results")


def test_a_commit_that_no_branch_would_hold_is_refused(repository):
    repository.git("switch", "-q", "--detach")
    with pytest.raises(PipelineError, match="no branch is checked out"):
        results_branch(repository.root)
