import shutil
import subprocess
import sys
import threading
from configparser import ConfigParser

import pytest

from sparsemm.errors import PipelineError
from sparsemm.pipeline.integrate import integrate
from sparsemm.pipeline.plan import targets
from sparsemm.pipeline.worktree import cache_folder, check_clean, has_remote, reproduce, worktree


def model_in_worktree(repository, key):
    with worktree(repository.root, key) as (folder, lock):
        reproduce(folder, targets(folder, key), keep=(lock,))


def test_models_side_by_side_come_back_through_the_run_cache(repository):
    integrate(repository.root, ["download@calibration", "download@evaluation"], "data")
    threads = [threading.Thread(target=model_in_worktree, args=(repository, key)) for key in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ran = repository.called()
    assert ran["chase one"] == ran["chase two"] == 1 and sum(ran.values()) == 14
    integrate(repository.root, [], "all")
    assert repository.called() == {"report ": 1}  # everything else came from the run cache
    assert repository.git("worktree", "list").count("\n") == 1
    quiet = repository.outputs()
    for left in ("artifacts", ".dvc/cache", ".dvc/tmp", "dvc.lock"):
        path = repository.root / left
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    integrate(repository.root, [], "again, without worktrees")
    assert repository.outputs() == quiet


def test_a_second_run_of_a_model_waits_and_finds_the_results(repository):
    told, done = [], []

    def second():
        with worktree(repository.root, "one", told.append) as (folder, lock):
            reproduce(folder, targets(folder, "one"), keep=(lock,))
            done.append("second")

    with worktree(repository.root, "one") as (folder, lock):
        other = threading.Thread(target=second)
        other.start()
        reproduce(folder, targets(folder, "one"), keep=(lock,))
        assert not done
    other.join()
    assert done == ["second"] and any("worktree-one" in line for line in told)
    assert repository.called()["chase one"] == 1


def test_what_a_killed_run_left_is_removed(repository):
    folder = repository.root / "build" / "worktrees" / "one"
    repository.git("worktree", "add", "-q", "--detach", str(folder), "HEAD")
    (folder / "params.yaml").write_text("half written")
    repository.git("worktree", "lock", str(folder))
    with worktree(repository.root, "one") as (fresh, _):
        assert fresh == folder and "models" in (fresh / "params.yaml").read_text()
    assert not folder.exists()


def test_the_worktree_runs_its_own_code_and_sees_untracked_checkpoints(repository):
    checkpoint = repository.root / "data" / "incoming" / "one"
    checkpoint.mkdir(parents=True)
    (checkpoint / "config.json").write_text("{}")
    text = (repository.root / "params.yaml").read_text().replace("hub/one", "data/incoming/one")
    (repository.root / "params.yaml").write_text(text)
    repository.git("commit", "-qam", "incoming")
    with worktree(repository.root, "one") as (folder, _):
        assert (folder / "data" / "incoming" / "one" / "config.json").read_text() == "{}"
    assert (checkpoint / "config.json").exists()  # the link went, not what it points at


def test_a_failing_stage_says_why_and_leaves_nothing(repository):
    (repository.told / "fail").write_text("chase one")
    with pytest.raises(PipelineError, match="told to fail"):
        model_in_worktree(repository, "one")
    assert not (repository.root / "build" / "worktrees" / "one").exists()
    assert repository.git("worktree", "list").count("\n") == 1
    (repository.told / "fail").unlink()
    repository.called()
    model_in_worktree(repository, "one")
    assert repository.called()["align one"] == 0  # what had ended was kept


def test_uncommitted_inputs_are_refused_and_named(repository):
    check_clean(repository.root)
    (repository.root / "artifacts").mkdir(exist_ok=True)
    (repository.root / "notes.txt").write_text("not an input")
    check_clean(repository.root)
    (repository.root / "sparsemm" / "budgets.py").write_text("# edited")
    with pytest.raises(PipelineError, match="sparsemm/budgets.py"):
        check_clean(repository.root)


def test_settings_that_dvc_cannot_use_are_refused(repository, tmp_path):
    with pytest.raises(PipelineError, match="not a DVC repository.*dvc init"):
        has_remote(tmp_path)
    (repository.root / ".dvc" / "config.local").write_text("[cache]\n    dir = [\nremote")
    with pytest.raises(PipelineError, match="DVC's settings"):
        cache_folder(repository.root)
    with pytest.raises(PipelineError, match="DVC's settings"), worktree(repository.root, "one"):
        pass


def test_a_remote_is_noticed_and_its_local_settings_are_copied(repository, tmp_path):
    assert not has_remote(repository.root)
    command = [sys.executable, "-m", "dvc", "remote", "add", "--local", "-d", "here", str(tmp_path / "remote")]
    subprocess.run(command, cwd=repository.root, check=True, capture_output=True)
    assert has_remote(repository.root)
    with worktree(repository.root, "one") as (folder, _):
        assert has_remote(folder)
        settings = ConfigParser()
        settings.read(folder / ".dvc" / "config.local", encoding="utf-8")
        assert (folder / ".dvc" / settings["cache"]["dir"]).resolve() == (repository.root / ".dvc" / "cache").resolve()
