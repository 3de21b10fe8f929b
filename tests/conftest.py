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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from sparsemm.compat import define_missing_torchvision_operators
from tests.faults import Hub, Proxy, running
from tests.repository import STAND_IN, Pipeline, Repository, copy_repository, few_studies, make_template

define_missing_torchvision_operators()  # before any test module imports transformers
ROOT = Path(__file__).parent.parent
CHECKPOINTS = ROOT / "data" / "checkpoints"


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


@pytest.fixture(scope="session")
def repository_template(tmp_path_factory) -> Path:
    """What `repository` copies."""
    return make_template(tmp_path_factory.mktemp("template"))


@pytest.fixture
def repository(repository_template, tmp_path, monkeypatch) -> Repository:
    """A repository of two models whose stages a stand-in makes; nothing has run yet."""
    return copy_repository(repository_template, tmp_path, monkeypatch)


@pytest.fixture(scope="session")
def new_pipeline() -> Callable[..., Pipeline]:
    """`new_pipeline(folder, families, **environment)`: a Pipeline before its first `dvc repro`."""

    def make(folder: Path, families: dict[str, str], **environment: str) -> Pipeline:
        shutil.copytree(ROOT / "sparsemm", folder / "sparsemm", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(ROOT / "csrc", folder / "csrc")
        for name in ("dvc.yaml", ".dvcignore", ".gitignore"):
            shutil.copy(ROOT / name, folder)
        (folder / "dvc.yaml").write_text(few_studies((ROOT / "dvc.yaml").read_text(encoding="utf-8")), encoding="utf-8")
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


@pytest.fixture
def hub(monkeypatch) -> Iterator[Hub]:
    """A stand-in for the hub, reached as HF_ENDPOINT would have it reached; it has no repository yet."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with running(Hub()) as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield server


@pytest.fixture
def store(monkeypatch) -> Iterator[Any]:
    """A client of an S3 server with an empty bucket named bucket; everybody else reaches it by AWS_ENDPOINT_URL."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    reset = urllib.request.Request(f"http://{host}:{port}/moto-api/reset", method="POST")
    urllib.request.urlopen(reset).close()  # its stores outlive a server
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "canary-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="bucket")
    yield client
    client.close()
    server.stop()


@pytest.fixture
def store_proxy(store, monkeypatch) -> Iterator[Proxy]:
    """A proxy before the store that AWS_ENDPOINT_URL now names, for faults."""
    with running(Proxy(int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2]))) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        yield server
