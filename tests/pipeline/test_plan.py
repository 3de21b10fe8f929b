import shutil
from concurrent.futures import ThreadPoolExecutor
from queue import Queue

import pytest

from sparsemm.errors import ParamsError, PipelineError
from sparsemm.pipeline import plan as module
from sparsemm.pipeline.integrate import integrate
from sparsemm.pipeline.plan import plan, stages, targets
from tests.repository import ROOT, few_studies
from tests.servers import wait_for


def test_what_is_stale_before_and_after(repository):
    found = plan(repository.root)
    assert found.models == {"one": stages(repository.root), "two": stages(repository.root)}
    assert found.downloads == ("download@calibration", "download@evaluation") and "report" in found.shared
    (repository.told / "hang").write_text("chase one")
    said = Queue()
    with ThreadPoolExecutor() as threads:
        writing = threads.submit(integrate, repository.root, [], "all")
        wait_for((repository.told / "hanging").exists, "the stage that hangs")
        asked = threads.submit(plan, repository.root, said.put)  # DVC would refuse to say
        assert "integrate" in said.get(timeout=60)
        (repository.told / "hang").unlink()
        assert writing.result() and asked.result() == module.Plan({}, ())
    repository.set_models("one", "two", "three")
    found = plan(repository.root)
    assert found.models == {"three": stages(repository.root)} and found.downloads == ()


def test_targets_end_where_asked(tmp_path):
    root = tmp_path
    shutil.copy(ROOT / "dvc.yaml", root)
    text = few_studies((ROOT / "params.yaml").read_text(encoding="utf-8"), "curve", "rho")
    (root / "params.yaml").write_text(text, encoding="utf-8")
    mine = ["align@k-1", "chase@k-1", "allocate@k-1", "evaluate@k-1", "profile@k-1", "tune@k-1", "explore@k-1"]
    assert targets(root, "k-1") == [*mine, "study@rho-k-1", "study-derived@curve-k-1"]
    assert targets(root, "k-1", "chase") == mine[:2]
    assert stages(root)[-2:] == ("study@rho", "study-derived@curve")


def test_a_broken_dvc_yaml_is_refused(tmp_path):
    for text in ("stages: [", "3", "{}"):
        (tmp_path / "dvc.yaml").write_text(text)
        with pytest.raises(PipelineError, match="dvc.yaml"):
            stages(tmp_path)


def test_a_folder_without_dvc_is_refused(tmp_path, repository):
    (tmp_path / "params.yaml").write_text((repository.root / "params.yaml").read_text())
    with pytest.raises(PipelineError, match="dvc.yaml"):
        plan(tmp_path)


def test_invalid_params_are_refused(repository):
    (repository.root / "params.yaml").write_text("models: 3")
    with pytest.raises(ParamsError):
        plan(repository.root)


def test_output_that_is_no_json_is_shown(repository, monkeypatch):
    monkeypatch.setattr(module, "run", lambda *a, **k: "no braces")
    with pytest.raises(PipelineError, match="no braces"):
        plan(repository.root)
