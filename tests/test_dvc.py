"""The real dvc.yaml under real DVC, with a stand-in for the command that only notes what was called."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections import Counter

import pytest
import yaml

from sparsemm.params import ModelParams, load_params
from sparsemm.params.entries import add_entry, remove_entry
from sparsemm.studies.names import DERIVED, MEASURED, STUDIES
from tests.repository import ROOT


@pytest.fixture(scope="module")
def clone(tmp_path_factory, new_pipeline):
    """The repository's pipeline with two models, after one `dvc repro`."""
    pipeline = new_pipeline(tmp_path_factory.mktemp("clone"), {"one": "qwen2_vl", "two": "llava_next"})
    assert pipeline.repro() == full(("one", "two"), datasets=2)
    return pipeline


def full(models, datasets=0):
    """Every stage of these models, and the report."""
    stages = ("align", "chase", "allocate", "evaluate", "profile", "study rho", "study curve")
    result = Counter(f"{stage} {model}" for stage in stages for model in models)
    result["report "] += 1
    if datasets:
        result.update(["download calibration", "download evaluation"])
    return result


def test_nothing_stale_runs_nothing(clone):
    assert clone.repro() == Counter()


def test_a_new_model_runs_only_its_stages_and_goes_again(clone):
    entry = ModelParams(checkpoint="a/three", revision="1", family="qwen2_vl")
    add_entry(clone.folder / "params.yaml", "three", entry)
    assert clone.repro() == full(("three",))
    remove_entry(clone.folder / "params.yaml", "three")
    ran = clone.repro()
    assert set(ran) <= {"report "}


def test_a_new_revision_runs_only_that_models_stages(clone):
    entry = ModelParams(checkpoint="a/two", revision="2", family="llava_next")
    add_entry(clone.folder / "params.yaml", "two", entry)
    ran = clone.repro()
    assert ran.keys() <= full(("two",)).keys() and {"align two", "chase two"} <= ran.keys()


def test_an_edit_in_one_module_runs_only_who_uses_it(clone):
    path = clone.folder / "sparsemm" / "profiling" / "latency.py"
    path.write_text(path.read_text() + "# edited\n")
    ran = clone.repro()
    assert {name.split()[0] for name in ran} <= {"profile", "study", "report"} and ran["profile one"] == 1
    assert "study rho one" not in ran


def test_an_edit_of_a_study_or_its_entry_runs_that_study_alone(clone):
    path = clone.folder / "sparsemm" / "studies" / "rho.py"
    path.write_text(path.read_text() + "# edited\n")
    ran = clone.repro()
    assert ran["study rho one"] == 1 and set(ran) == {"study rho one", "study rho two", *ran.keys() & {"report "}}


def test_every_study_is_in_dvc_yaml_and_in_params():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    assert tuple(stages["reading"]["matrix"]["name"]) == DERIVED
    assert (*stages["study"]["matrix"]["name"], "looking") == MEASURED
    assert load_params(ROOT / "params.yaml").studies.model_fields_set == set(STUDIES)


def test_metrics_plots_and_params_can_be_looked_at(clone):
    assert "value" in clone.dvc("metrics", "show")
    out = clone.dvc("plots", "show", "-o", "plots")
    assert (clone.folder / "artifacts/report/figures/a.png").exists()
    assert "index.html" in out and (clone.folder / "plots" / "index.html").stat().st_size > 1000
    clone.dvc("params", "diff")


def test_killed_at_any_stage_it_ends_in_the_same_hashes(clone):
    clone.repro()
    wanted = clone.outputs()
    for left in ("artifacts", ".dvc/cache", ".dvc/tmp"):
        shutil.rmtree(clone.folder / left)
    (clone.folder / "dvc.lock").unlink()
    for stage in ("download evaluation", "chase two", "report"):
        mark = clone.folder / "hanging"
        mark.unlink(missing_ok=True)
        started = clone.start("repro", "-q", env=clone.environment | {"HANG": stage}, start_new_session=True)
        deadline = time.monotonic() + 240
        while not mark.exists() and time.monotonic() < deadline and started.poll() is None:
            time.sleep(0.1)
        assert mark.exists(), f"never came to {stage}"
        for line in subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True).stdout.splitlines()[1:]:
            pid, parent = map(int, line.split())
            if parent == started.pid:  # dvc gives its commands a session of their own
                os.killpg(os.getpgid(pid), signal.SIGKILL)
        os.killpg(started.pid, signal.SIGKILL)
        started.wait()
    clone.repro()
    # The old lock also remembers a model that was removed.
    assert clone.outputs() == {path: md5 for path, md5 in wanted.items() if "three" not in path}
