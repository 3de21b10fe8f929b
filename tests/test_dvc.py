"""The real dvc.yaml under real DVC, with a stand-in for the command that only notes what was called."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections import Counter

import pytest
import yaml

from sparsemm.params import ModelParams, load_params
from sparsemm.params.entries import add_entry, remove_entry
from sparsemm.pipeline.plan import plan, targets
from sparsemm.registry.contents import FURTHER
from sparsemm.registry.lockfile import read_stages
from sparsemm.studies import GROUPS, STUDIES, in_group
from tests.repository import ROOT, copy_repository, few_studies, make_template, without_assembled


@pytest.fixture(scope="module")
def repository_template(tmp_path_factory):
    """One whose stages depend on the code that they use."""
    return make_template(tmp_path_factory.mktemp("template"), whole=True)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory, repository_template):
    """The repository's pipeline with two models, after one `dvc repro`."""
    pipeline = copy_repository(repository_template, tmp_path_factory.mktemp("pipeline"))
    assert pipeline.repro() == full(("one", "two"), datasets=2)
    return pipeline


def full(models, datasets=0):
    """Every stage of these models, and the report."""
    stages = ("align", "chase", "allocate", "evaluate", "profile", "tune", "explore", "study rho", "study curve")
    result = Counter(f"{stage} {model}" for stage in stages for model in models)
    result["report "] += 1
    if datasets:
        result.update(["download calibration", "download evaluation"])
    return result


def test_nothing_stale_runs_nothing(pipeline):
    assert pipeline.repro() == Counter()


def test_a_new_model_runs_only_its_stages_and_goes_again(pipeline):
    entry = ModelParams(checkpoint="hub/three", revision="1", family="qwen2_vl")
    add_entry(pipeline.root / "params.yaml", "three", entry)
    assert pipeline.repro() == full(("three",))
    remove_entry(pipeline.root / "params.yaml", "three")
    ran = pipeline.repro()
    assert set(ran) <= {"report "}


def test_a_new_model_makes_nothing_of_another_model_stale(tmp_path, repository_template):
    """With another data set to chase over, and a study that compares tables."""
    pipeline = copy_repository(repository_template, tmp_path)
    path = pipeline.root / "params.yaml"
    few = ("sources",)
    text = few_studies(without_assembled((ROOT / "params.yaml").read_text(encoding="utf-8")), *few)
    path.write_text(yaml.safe_dump(yaml.safe_load(text) | {"models": yaml.safe_load(path.read_text())["models"]}))
    first = pipeline.repro()
    assert {f"study {name} {key}" for name in few for key in ("one", "two")} <= first.keys()
    assert pipeline.dvc("status", "--json").strip() == "{}"
    add_entry(path, "three", ModelParams(checkpoint="hub/three", revision="1", family="qwen2_vl"))
    stale = set(json.loads(pipeline.dvc("status", "--json")))
    assert {"inputs", "report"} <= stale and all("three" in name for name in stale - {"inputs", "report"})
    pipeline.dvc("repro", "inputs")
    _, output = pipeline.try_dvc("repro", "--dry", "--keep-going")  # goes no further than the first file not made
    commands = [line for line in output.splitlines() if line.startswith("> ")]
    assert commands == ["> sparsemm align three", "> sparsemm align three --dataset small-type"]
    ran = pipeline.repro()
    of_three = {one.replace("one", "three"): times for one, times in first.items() if "one" in one}
    assert ran == Counter(of_three) + Counter(["report "])


def test_a_checkpoint_that_is_assembled_is_so_before_it_is_loaded(tmp_path, repository_template):
    pipeline = copy_repository(repository_template, tmp_path)
    path = pipeline.root / "params.yaml"
    updates = pipeline.root / "updates"
    updates.mkdir()
    (updates / "updates.safetensors").write_text("1")
    params = yaml.safe_load(path.read_text())
    params["assembled"] = {"four": {"updates": "updates"}}
    checkpoint = {"checkpoint": "artifacts/checkpoints/four", "revision": "1", "family": "llava_next"}
    # First in the file and in the alphabet too, or the order might be that of the names.
    params["models"] = {"a-one": checkpoint | {"checkpoint": "hub/a"}, "four": checkpoint}
    path.write_text(yaml.safe_dump(params, sort_keys=False))
    pipeline.dvc("repro")
    calls = (pipeline.told / "calls.txt").read_text().splitlines()
    assert Counter(calls) == full(("a-one", "four"), datasets=2) + Counter(["assemble four"])
    assert calls.index("assemble four") < calls.index("align four")
    assert targets(pipeline.root, "four", "chase") == ["assemble@four", "align@four", "chase@four"]
    assert targets(pipeline.root, "a-one", "chase") == ["align@a-one", "chase@a-one"]
    (updates / "updates.safetensors").write_text("2")
    assert plan(pipeline.root).shared == ("assemble@four",)
    assert pipeline.repro() == Counter(["assemble four"])  # the models' revision says whether theirs are stale


def test_a_new_revision_runs_only_that_models_stages(pipeline):
    entry = ModelParams(checkpoint="hub/two", revision="2", family="qwen2_vl")
    add_entry(pipeline.root / "params.yaml", "two", entry)
    ran = pipeline.repro()
    assert ran.keys() <= full(("two",)).keys() and {"align two", "chase two"} <= ran.keys()


def test_an_edit_in_one_module_runs_only_who_uses_it(pipeline):
    path = pipeline.root / "sparsemm" / "profiling" / "latency.py"
    path.write_text(path.read_text() + "# a comment\n")
    assert pipeline.repro() == Counter()
    path.write_text(path.read_text() + "EDITED = True\n")
    lines = []
    assert plan(pipeline.root, lines.append).models == {"one": ("profile",), "two": ("profile",)}
    assert "sparsemm/profiling/latency.py: profile-shape, profile" in lines  # why they are stale
    ran = pipeline.repro()
    assert {name.split()[0] for name in ran} <= {"profile", "study", "report"} and ran["profile one"] == 1
    assert "study rho one" not in ran


def test_an_edit_of_a_study_or_its_entry_runs_that_study_alone(pipeline):
    path = pipeline.root / "sparsemm" / "studies" / "rho.py"
    path.write_text(path.read_text() + "EDITED = True\n")
    ran = pipeline.repro()
    assert ran["study rho one"] == 1 and set(ran) == {"study rho one", "study rho two", *ran.keys() & {"report "}}


def test_a_model_with_other_settings_for_a_stage_runs_that_stage_alone(pipeline):
    path = pipeline.root / "params.yaml"
    before = path.read_text()
    params = yaml.safe_load(before)
    params["models"]["one"] |= {
        "tune": {"samples": 6},
        "note": "a note",
        "studies": {"measured": {"rho": {"samples": 4}}},
    }
    path.write_text(yaml.safe_dump(params))
    assert pipeline.repro() == Counter(["tune one", "study rho one", "report "])
    path.write_text(before)
    assert set(pipeline.repro()) <= {"report "}


def test_another_data_set_to_chase_over_runs_its_stages_alone(pipeline):
    path = pipeline.root / "params.yaml"
    before = path.read_text()
    params = yaml.safe_load(before)
    params["datasets"]["signs"] = {"source": "synthetic", "split": "calibration", "samples": 4, "seed": 1}
    params["robustness"] = {"signs": {"prompt": "Read the signs."}}
    path.write_text(yaml.safe_dump(params))
    wanted = Counter(f"{stage} {model}" for stage in ("align", "chase") for model in ("one", "two"))
    assert pipeline.repro() == wanted + Counter(["download signs", "report "])
    for key in ("one", "two"):  # by the names under which a publication looks for them
        also = read_stages(pipeline.root, key).also
        assert set(also) == {f"align-also@{key}-signs", f"chase-also@{key}-signs"}
        outs = {out["path"] for entry in also.values() for out in entry["outs"]}
        assert outs > {f"artifacts/{name.format(key=key, dataset='signs')}" for name in FURTHER}
    path.write_text(before)
    assert set(pipeline.repro()) <= {"report "}


def test_a_study_that_is_dropped_has_no_stage_and_makes_nothing_stale(pipeline):
    path = pipeline.root / "params.yaml"
    before = path.read_text()
    params = yaml.safe_load(before)
    del params["studies"]["measured"]["rho"]
    path.write_text(yaml.safe_dump(params))
    assert set(pipeline.repro()) <= {"report "}
    # Every group and every study of params.yaml has its stages; dropped, it has none.
    for whole in (True, False):
        params["studies"] = yaml.safe_load((ROOT / "params.yaml").read_text())["studies"]
        if not whole:
            params["studies"] = {group: {} for group in GROUPS}
        path.write_text(yaml.safe_dump(params))
        names = pipeline.dvc("stage", "list", "--name-only").split()
        made = {tuple(name.partition("@")[2].split("-")) for name in names}
        wanted = {(study, key) for study in STUDIES for key in params["models"]} if whole else set()
        assert {one for one in made if one[0] in STUDIES and len(one) == 2} == wanted
    path.write_text(before)


def test_every_study_is_in_its_group_of_params():
    groups = load_params(ROOT / "params.yaml").studies
    assert {group: {name for name, given in own if given} for group, own in groups} == {
        g: {*in_group(g)} for g in GROUPS
    }


def test_metrics_plots_and_params_can_be_looked_at(pipeline):
    assert "value" in pipeline.dvc("metrics", "show")
    out = pipeline.dvc("plots", "show", "-o", "plots")
    drawn = (pipeline.root / "plots" / "index.html").read_text(encoding="utf-8")
    assert "index.html" in out and "failed" not in out
    titles = re.findall(r'"title": \{"text": "([^"]+)"', drawn)
    assert len(titles) == len(set(titles)) == 10  # the tables of the stages draw nothing
    assert "evaluate/one.csv" in drawn and drawn.count('"width": 0') > 10
    pipeline.dvc("params", "diff")


def test_killed_at_any_stage_it_ends_in_the_same_hashes(pipeline):
    (pipeline.root / "dvc.lock").unlink()  # it still names what earlier tests had and removed
    pipeline.repro()
    wanted = pipeline.outputs()
    for left in ("artifacts", ".dvc/cache", ".dvc/tmp"):
        shutil.rmtree(pipeline.root / left)
    (pipeline.root / "dvc.lock").unlink()
    for stage in ("download evaluation", "chase two", "report"):
        mark = pipeline.told / "hanging"
        mark.unlink(missing_ok=True)
        (pipeline.told / "hang").write_text(stage)
        started = pipeline.start("repro", "-q", start_new_session=True)
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
    (pipeline.told / "hang").unlink()
    pipeline.repro()
    # The old lock also remembers a model that was removed.
    assert pipeline.outputs() == {path: md5 for path, md5 in wanted.items() if "three" not in path}
