"""A small repository with the stages of dvc.yaml and a stand-in for the command that notes what was called."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
STAND_IN = """#!{python}
import base64, json, os, pathlib, sys, time, yaml
command, key = sys.argv[1], (sys.argv[2:] or [""])[0]
study, key = (key, sys.argv[3]) if command == "study" else ("", key)
if command == "inputs":
    os.execv(sys.executable, [sys.executable, *{inputs!r}])
told = pathlib.Path(os.environ["STAND_IN_TOLD"])  # outside of every worktree
with open(told / "calls.txt", "a") as log:
    log.write(" ".join([command, *([study] if study else []), key]) + "\\n")
print("stage", command, key, flush=True)
outputs = {{
    "download": ["datasets/{{}}.parquet"],
    "assemble": ["checkpoints/{{}}/config.json"],
    "align": ["align/{{}}.parquet", "align/{{}}.json"],
    "chase": ["scores/{{}}.safetensors", "scores/{{}}.json", "scores/{{}}.csv", "scores/{{}}.covariates.csv"],
    "allocate": ["budgets/{{}}.json"],
    "evaluate": ["evaluate/{{}}.samples.parquet", "evaluate/{{}}.json", "evaluate/{{}}.csv"],
    "profile": ["profile/{{}}.json", "profile/{{}}.csv"],
    "tune": ["recipes/{{}}.json", "recipes/{{}}.csv"],
    "study": ["studies/" + study + "/{{}}.json", "studies/" + study + "/{{}}.csv"],
    "explore": ["explorer/{{}}.json"],
    "report": ["report/index.html", *(f"report/plots/{{name}}.csv" for name in {plots!r})],
}}[command]
if "--dataset" in sys.argv:  # of `robustness`
    outputs = [o.replace("/{{}}", "/also/{{}}/" + sys.argv[4], 1) for o in outputs]
name = " ".join(part for part in (command, study, key) if part)
params = yaml.safe_load(pathlib.Path("params.yaml").read_text())
for output in outputs:
    path = pathlib.Path("artifacts") / output.format(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    if (told / "fail").exists() and (told / "fail").read_text() == name:
        path.write_text("half")
        sys.exit("told to fail")
    if (told / "hang").exists() and (told / "hang").read_text() == name:
        path.write_text("half")
        (told / "hanging").write_text(str(os.getpid()))
        while (told / "hang").exists():
            time.sleep(0.1)
    if command == "report" and output.endswith("csv"):
        path.write_text("panel,series,at,value,low,high\\nread,full,8,0.9,,\\n")
    elif output.endswith("csv"):
        columns = "method,prompt_length,prefill_ms,decode_ms_per_token,kept_bytes,level,budget,setting,value"
        path.write_text(columns + "\\nfull,8,1,1,1,1,1,a,1\\n")
    elif command == "evaluate" and output.endswith("json"):
        path.write_text(json.dumps({{"read": {{"full": {{"all": 0.9}}, "sparsemm": {{"48": 0.88}}}}}}))
    elif command == "explore":
        picture = "data:image/png;base64," + base64.b64encode(key.encode()).decode()
        path.write_text(json.dumps({{"method": [{{"image": picture, "text": "a head"}}]}}))
    elif command == "tune" and output.endswith("json"):
        table = pathlib.Path("artifacts/scores") / (key + ".safetensors")
        digest = key
        if os.environ.get("STAND_IN_TABLES"):
            import sparsemm.scores
            digest = sparsemm.scores.ScoreTable.load(table).digest()
        entry = params["models"][key]
        recipe = {{"format": 1, "model": entry["checkpoint"], "revision": entry["revision"], "fingerprint": "f"}}
        data = {{"dataset": "evaluation", "sha256": "0" * 64, "search": 2, "confirmation": 1}}
        recipe |= {{"scores": digest, "data": data, "budgets": [24], "scenarios": {{}}, "versions": {{}}}}
        path.write_text(json.dumps(recipe))
    elif output.endswith("json"):
        path.write_text(json.dumps({{"value": 1}}))
    elif output.endswith("safetensors") and os.environ.get("STAND_IN_TABLES"):  # an import that takes its time
        import numpy, sparsemm.scores
        entry = params["models"][key]
        header = {{"model": entry["checkpoint"], "revision": entry["revision"], "fingerprint": "f", "num_kv_heads": 2}}
        samples = 1.0 + numpy.arange(80.0).reshape(1, 20, 4).repeat(6, 0)
        made = sparsemm.scores.ScoreTable.from_samples(samples, numpy.ones((20, 4), dtype=int), header)
        made.save(path)
    else:
        path.write_text(command + key + str(params["models"].get(key)))
"""

# The files of artifacts/inputs without code, whose imports take their time to follow.
INPUTS = """
import json, pathlib, yaml
params = yaml.safe_load(pathlib.Path("params.yaml").read_text())
sections = "chase allocate evaluate profile tune studies".split()
files = {name: {} for name in ("download", "assemble", "profile-shape", "report")}
for key, entry in params["models"].items():
    model = {"device_map": None, "dtype": "float32", "load_in": None} | entry
    model = {"model": {name: value for name, value in model.items() if name not in (*sections, "note")}}
    for stage in "align chase allocate evaluate profile tune explore".split():
        own = {"overrides": {stage: entry[stage]} if stage in entry else {}}
        files[f"{stage}/{key}"] = own if stage == "allocate" else model | own
    for group, studies in params["studies"].items():
        own = {"overrides": {}} | ({} if group == "derived" else model)
        files |= {f"study/{name}/{key}": own for name in studies}
for name, content in files.items():
    path = pathlib.Path("artifacts/inputs") / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
"""


def without_robustness(text: str) -> str:
    """params.yaml without further data sets to chase over; a test that wants one declares it."""
    value = yaml.safe_load(text)
    for name in value["robustness"]:
        del value["datasets"][name]
    return yaml.safe_dump(value | {"robustness": {}}, sort_keys=False)


def without_assembled(text: str) -> str:
    """params.yaml without checkpoints to put together; a test that wants one declares it."""
    return yaml.safe_dump(yaml.safe_load(text) | {"assembled": {}}, sort_keys=False)


def few_studies(text: str, *few: str) -> str:
    """params.yaml with a few studies: all of a group are made alike."""
    value = yaml.safe_load(text)
    for group, studies in value["studies"].items():
        value["studies"][group] = {name: one for name, one in studies.items() if name in few}
    return yaml.safe_dump(value, sort_keys=False)


def short(text: str) -> str:
    """dvc.yaml without studies and recipes, its first stage running for new params and not for new code."""
    value = yaml.safe_load(text)
    del value["stages"]["inputs"]["deps"], value["stages"]["tune"]
    for folder in ("recipes", "studies"):
        value["stages"]["report"]["deps"].remove(f"artifacts/{folder}")
    return yaml.safe_dump(value, sort_keys=False)


class Repository:
    """A Git and DVC repository with the stages of dvc.yaml, which are made by the stand-in.

    Its commands run with `environment`: the stand-in comes first on PATH, and what is given besides.

    `told`: folder where the stand-in notes its calls ("calls.txt"), and where tests tell it "hang" or "fail", with
    the text "STAGE KEY".
    """

    def __init__(self, root: Path, programs: Path, **environment: str) -> None:
        self.root, self.programs, self.given = root, programs, environment
        self.told = root.with_name(f"{root.name}-told")
        self.told.mkdir(exist_ok=True)
        search = [str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]
        own = {"PATH": os.pathsep.join(search), "STAND_IN_TOLD": str(self.told), "SHELL": "/bin/sh"}
        self.environment = own | {"DVC_SITE_CACHE_DIR": str(root.with_name(f"{root.name}-site"))} | environment

    def enter(self, monkeypatch: pytest.MonkeyPatch) -> Repository:
        """This process and its children have the same environment; returns itself."""
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)
        return self

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """A running dvc."""
        command = [sys.executable, "-m", "dvc", *arguments]
        return subprocess.Popen(command, cwd=self.root, text=True, env=os.environ | self.environment, **options)

    def try_dvc(self, *arguments: str) -> tuple[int, str]:
        """Exit status and all output of one dvc command."""
        with self.start(*arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            output, _ = process.communicate()
        return process.returncode, output

    def dvc(self, *arguments: str) -> str:
        """Output of one dvc command, which must succeed."""
        status, output = self.try_dvc(*arguments)
        assert status == 0, output
        return output

    def repro(self, *options: str) -> Counter[str]:
        """Calls of the command by one `dvc repro`."""
        self.called()
        self.dvc("repro", *options)
        return self.called()

    def called(self) -> Counter[str]:
        """Calls of the command since the last look."""
        log = self.told / "calls.txt"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return Counter(lines)

    def outputs(self) -> dict[str, str]:
        """Hash of every output in dvc.lock."""
        lock = yaml.safe_load((self.root / "dvc.lock").read_text())
        return {out["path"]: out["md5"] for stage in lock["stages"].values() for out in stage["outs"]}

    def git(self, *arguments: str) -> str:
        """Output of a git command."""
        done = subprocess.run(["git", *arguments], cwd=self.root, capture_output=True, text=True, check=True)
        return done.stdout

    def commit(self, message: str) -> None:
        """Everything Git may have, in one commit."""
        self.git("add", "-A")
        self.git("commit", "-qm", message)

    def set_models(self, *keys: str) -> None:
        """Commit params.yaml with these models."""
        path = self.root / "params.yaml"
        params = yaml.safe_load(path.read_text())
        params["models"] = {k: {"checkpoint": f"hub/{k}", "revision": "1", "family": "qwen2_vl"} for k in keys}
        path.write_text(yaml.safe_dump(params))
        self.commit("models")

    def copy(self, root: Path) -> Repository:
        """A copy of its folder, DVC's cache included."""
        shutil.copytree(self.root, root, symlinks=True)
        return Repository(root, self.programs, **self.given)

    def clone(self, root: Path) -> Repository:
        """A fresh Git clone with an empty cache."""
        subprocess.run(["git", "clone", "-q", str(self.root), str(root)], check=True)
        return Repository(root, self.programs, **self.given)


def make_template(folder: Path, whole: bool = False) -> Path:
    """An initialised repository of two models, to be copied: git and DVC take seconds to make one.

    If it is `whole`, its pipeline is the real one with a study that asks and one that reads, and depends on code.
    Otherwise it is `short` and has no studies.
    """
    root = folder / "repository"
    root.mkdir()
    for name in ("sparsemm", "flows", "csrc"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", "prefect.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, root)
    if not whole:
        (root / "dvc.yaml").write_text(short((ROOT / "dvc.yaml").read_text(encoding="utf-8")), encoding="utf-8")
    text = without_assembled(without_robustness((ROOT / "params.yaml").read_text(encoding="utf-8")))
    text = few_studies(text, *(("curve", "rho") if whole else ()))
    (root / "params.yaml").write_text(text, encoding="utf-8")
    script = folder / "bin" / "sparsemm"
    script.parent.mkdir()
    pipeline = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    plots = [Path(path).stem for one in pipeline["plots"] for path in one]
    inputs = ["-m", "sparsemm.cli", "inputs"] if whole else ["-c", INPUTS]
    script.write_text(STAND_IN.format(python=sys.executable, plots=plots, inputs=inputs))
    script.chmod(0o755)
    made = Repository(root, script.parent)
    made.git("init", "-q", "-b", "main")
    made.git("config", "user.email", "test@localhost")
    made.git("config", "user.name", "test")
    made.dvc("init", "-q")
    (root / ".dvc" / "config").write_text("[core]\n    analytics = false\n    check_update = false\n")
    made.set_models("one", "two")
    return folder


def copy_repository(template: Path, folder: Path, **environment: str) -> Repository:
    """A copy of the template."""
    shutil.copytree(template, folder, dirs_exist_ok=True)
    return Repository(folder / "repository", folder / "bin", **environment)
