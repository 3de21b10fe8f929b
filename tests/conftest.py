"""Shared fixtures: the small models (trained where a checkpoint is in the repository), a pipeline, a registry."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from sparsemm.compat import define_missing_torchvision_operators

define_missing_torchvision_operators()  # before any test module imports transformers
ROOT = Path(__file__).parent.parent
CHECKPOINTS = ROOT / "data" / "checkpoints"
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


@lru_cache(maxsize=8)
def _load(name: str) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from sparsemm.training.architectures import build

    folder = CHECKPOINTS / name
    if not (folder / "model.safetensors").is_file():
        return build(name)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return model.eval(), AutoProcessor.from_pretrained(folder, local_files_only=True)


@pytest.fixture(scope="session")
def tiny() -> Callable[[str], tuple[Any, Any]]:
    """`tiny(name) -> (model in fp32, processor)`, loaded once per session."""
    return _load


class Pipeline:
    """The repository's own pipeline in `folder`, under real DVC; its command only notes what was called."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder, self.own = folder, environment
        path = os.pathsep.join([str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
        site = str(folder.with_name(f"{folder.name}-site"))
        self.environment = os.environ | {"PATH": path, "DVC_SITE_CACHE_DIR": site, "SHELL": "/bin/sh"} | environment

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """A running dvc."""
        command = [sys.executable, "-m", "dvc", *arguments]
        return subprocess.Popen(command, cwd=self.folder, text=True, **{"env": self.environment, **options})

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
        """Commands that one `dvc repro` ran."""
        log = self.folder / "calls.txt"
        log.unlink(missing_ok=True)
        self.dvc("repro", *options)
        return Counter(log.read_text().splitlines() if log.exists() else [])

    def commit(self) -> None:
        """Everything Git may have, in one commit."""
        (self.folder / "calls.txt").unlink(missing_ok=True)
        who = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
        for command in (["add", "-A"], [*who, "commit", "-q", "-m", "all"]):
            subprocess.run(["git", *command], cwd=self.folder, check=True)

    def clone(self, folder: Path) -> Pipeline:
        """A fresh Git clone with an empty cache."""
        subprocess.run(["git", "clone", "-q", str(self.folder), str(folder)], check=True)
        return Pipeline(folder, **self.own)

    def outputs(self) -> dict[str, str]:
        """Hash of every output in dvc.lock."""
        lock = yaml.safe_load((self.folder / "dvc.lock").read_text())
        return {out["path"]: out["md5"] for stage in lock["stages"].values() for out in stage["outs"]}


@pytest.fixture(scope="session")
def new_pipeline() -> Callable[..., Pipeline]:
    """`new_pipeline(folder, families, **environment)`: a Pipeline before its first `dvc repro`."""

    def make(folder: Path, families: dict[str, str], **environment: str) -> Pipeline:
        shutil.copytree(ROOT / "sparsemm", folder / "sparsemm", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(ROOT / "csrc", folder / "csrc")
        for name in ("dvc.yaml", ".dvcignore", ".gitignore"):
            shutil.copy(ROOT / name, folder)
        params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
        params["models"] = {
            key: {"checkpoint": f"a/{key}", "revision": "1", "family": family} for key, family in families.items()
        }
        (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
        (folder / "bin").mkdir()
        script = folder / "bin" / "sparsemm"
        script.write_text(STAND_IN.format(python=sys.executable))
        script.chmod(0o755)
        subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
        pipeline = Pipeline(folder, **environment)
        pipeline.dvc("init", "-q")
        pipeline.dvc("config", "core.analytics", "false")
        return pipeline

    return make


@pytest.fixture(scope="session")
def registry_server() -> Callable[..., Any]:
    """`with registry_server(folder, *arguments, **environment) as (uri, process)`: `sparsemm registry serve`.

    It listens on a free port, leads a process group of its own, and writes its log to `folder`/log.
    """

    @contextmanager
    def serve(folder: Path, *arguments: str, **environment: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = str(found.getsockname()[1])
        command = [sys.executable, "-m", "sparsemm.cli", "--root", str(folder), "registry", "serve", "--port", port]
        with open(folder / "log", "wb") as log:
            options: dict[str, Any] = {"stdout": log, "stderr": log, "env": os.environ | environment, "cwd": ROOT}
            process = subprocess.Popen([*command, *arguments], start_new_session=True, **options)
        try:
            deadline = time.monotonic() + 180
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                    break
                except OSError:
                    assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
                    time.sleep(0.2)
            yield f"http://127.0.0.1:{port}", process
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    return serve
