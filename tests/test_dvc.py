"""The real dvc.yaml under real DVC, with a stand-in for the command that only notes what was called."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml

from sparsemm.models import add_entry, remove_entry
from sparsemm.params import ModelParams

ROOT = Path(__file__).parent.parent
STAND_IN = """#!{python}
import os, pathlib, sys, time, yaml
command, key = sys.argv[1], (sys.argv[2:] or [""])[0]
with open("calls.txt", "a") as log:
    log.write(command + " " + key + "\\n")
outputs = {{
    "download": ["datasets/{{}}.parquet"],
    "align": ["align/{{}}.parquet", "align/{{}}.json"],
    "chase": ["scores/{{}}.safetensors", "scores/{{}}.json", "scores/{{}}.csv"],
    "allocate": ["budgets/{{}}.json"],
    "evaluate": ["evaluate/{{}}.samples.parquet", "evaluate/{{}}.json", "evaluate/{{}}.csv"],
    "profile": ["profile/{{}}.json", "profile/{{}}.csv"],
    "report": ["report/index.html", "report/figures/a.png"],
}}[command]
for name in outputs:
    path = pathlib.Path("artifacts") / name.format(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    if os.environ.get("HANG") == (command + " " + key).strip():
        path.write_text("half")
        pathlib.Path("hanging").touch()
        time.sleep(300)
    value = "rank,value\\n1,2\\n" if name.endswith("csv") else '{{"value": 1}}' if name.endswith("json") else ""
    params = yaml.safe_load(pathlib.Path("params.yaml").read_text())
    path.write_text(value or command + key + str(params["models"].get(key)))
"""


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """The repository's pipeline with two models, after one `dvc repro`."""
    folder = tmp_path_factory.mktemp("clone")
    shutil.copytree(ROOT / "sparsemm", folder / "sparsemm", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    for name in ("dvc.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, folder)
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["models"] = {"one": {"checkpoint": "a/one", "revision": "1", "family": "qwen2_vl"}}
    params["models"]["two"] = {"checkpoint": "a/two", "revision": "1", "family": "llava_next"}
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    (folder / "bin").mkdir()
    script = folder / "bin" / "sparsemm"
    script.write_text(STAND_IN.format(python=sys.executable))
    script.chmod(0o755)
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    dvc(folder, "init", "-q")
    dvc(folder, "config", "core.analytics", "false")
    assert called(folder) == full(("one", "two"), datasets=2)
    return folder


def environment(folder):
    path = os.pathsep.join([str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    return os.environ | {"PATH": path, "DVC_SITE_CACHE_DIR": str(folder / ".site"), "SHELL": "/bin/sh"}


def dvc(folder, *arguments):
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def called(folder):
    """Commands that one `dvc repro` ran."""
    log = folder / "calls.txt"
    log.unlink(missing_ok=True)
    dvc(folder, "repro")
    return Counter(log.read_text().splitlines() if log.exists() else [])


def full(models, datasets=0):
    """Every stage of these models, and the report."""
    stages = ("align", "chase", "allocate", "evaluate", "profile")
    result = Counter(f"{stage} {model}" for stage in stages for model in models)
    result["report "] += 1
    if datasets:
        result.update(["download calibration", "download evaluation"])
    return result


def test_nothing_stale_runs_nothing(clone):
    assert called(clone) == Counter()


def test_a_new_model_runs_only_its_stages_and_goes_again(clone):
    entry = ModelParams(checkpoint="a/three", revision="1", family="qwen2_vl")
    add_entry(clone / "params.yaml", "three", entry)
    assert called(clone) == full(("three",))
    remove_entry(clone / "params.yaml", "three")
    ran = called(clone)
    assert set(ran) <= {"report "}


def test_a_new_revision_runs_only_that_models_stages(clone):
    entry = ModelParams(checkpoint="a/two", revision="2", family="llava_next")
    add_entry(clone / "params.yaml", "two", entry)
    ran = called(clone)
    assert ran.keys() <= full(("two",)).keys() and {"align two", "chase two"} <= ran.keys()


def test_an_edit_in_one_module_runs_only_who_uses_it(clone):
    path = clone / "sparsemm" / "profiling" / "latency.py"
    path.write_text(path.read_text() + "# edited\n")
    ran = called(clone)
    assert {name.split()[0] for name in ran} <= {"profile", "report"} and ran["profile one"] == 1


def test_metrics_plots_and_params_can_be_looked_at(clone):
    assert "value" in dvc(clone, "metrics", "show")
    out = dvc(clone, "plots", "show", "-o", "plots")
    assert (clone / "artifacts/report/figures/a.png").exists()
    assert "index.html" in out and (clone / "plots" / "index.html").stat().st_size > 1000
    dvc(clone, "params", "diff")


def outputs(folder):
    """Hash of every output in dvc.lock."""
    lock = yaml.safe_load((folder / "dvc.lock").read_text())
    return {out["path"]: out["md5"] for stage in lock["stages"].values() for out in stage["outs"]}


def test_killed_at_any_stage_it_ends_in_the_same_hashes(clone):
    called(clone)
    wanted = outputs(clone)
    for left in ("artifacts", ".dvc/cache", ".dvc/tmp"):
        shutil.rmtree(clone / left)
    (clone / "dvc.lock").unlink()
    for stage in ("download evaluation", "chase two", "report"):
        mark = clone / "hanging"
        mark.unlink(missing_ok=True)
        command = [sys.executable, "-m", "dvc", "repro", "-q"]
        started = subprocess.Popen(command, cwd=clone, env=environment(clone) | {"HANG": stage}, start_new_session=True)
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
    called(clone)
    # The old lock also remembers a model that was removed.
    assert outputs(clone) == {path: md5 for path, md5 in wanted.items() if "three" not in path}
