"""Shared fixtures: the small models (trained where a checkpoint is in the repository), a pipeline, stand-in servers."""

from __future__ import annotations

import os
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from sparsemm.compat import define_missing_torchvision_operators
from tests.faults import Hub, Proxy, running
from tests.repository import Repository, copy_repository, make_template

# Minutes, most of it waiting: first, beside files that compute, or one process would have them alone at the end.
LONG = ("flows/test_faults.py", "test_from_the_hub.py")

# Markers by path below tests/, a file or a folder; pyproject.toml says what they mean, and `make check` leaves all out.
MARKED = {
    "slow": (
        "assemble/test_stage.py",
        "cache/test_default_dtype.py",
        "cache/test_soak.py",
        "cuda_stand_in",
        "flows",
        "ops/test_build.py",
        "ops/test_sanitizers.py",
        "test_from_the_hub.py",
        "test_package.py",
        "test_robustness.py",
        "test_tutorials.py",
        "training",
    ),
    "services": (
        "examples",
        "flows",
        "registry",
        "report/test_browser.py",
        "test_backup.py",
        "test_postgres.py",
        "test_storage.py",
        "watch",
    ),
    "cuda": ("cache/test_device.py", "cuda_stand_in", "ops/test_cuda.py"),
}

# Machines are busy, so no example fails for the time that it takes.
hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("untimed")

define_missing_torchvision_operators()  # before any test module imports transformers
ROOT = Path(__file__).parent.parent
CHECKPOINTS = ROOT / "data" / "checkpoints"


def pytest_configure() -> None:
    """SPARSEMM_TEST_DTYPE names torch's default dtype for a whole run: see tests/cache/test_default_dtype.py."""
    if name := os.environ.get("SPARSEMM_TEST_DTYPE"):
        import torch

        torch.set_default_dtype(getattr(torch, name))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Markers by path. Long files first: the Makefile keeps pytest-xdist from sorting by the number of tests."""
    folder = Path(__file__).parent
    for item in items:
        path = item.path.relative_to(folder)
        for marker, places in MARKED.items():
            if any(path.is_relative_to(place) for place in places):
                item.add_marker(marker)
    items.sort(key=lambda item: next((i for i, name in enumerate(LONG) if item.path == folder / name), len(LONG)))


@pytest.fixture(scope="session", autouse=True)
def no_litter() -> Iterator[None]:
    """No test leaves anything in the repository that git does not ignore. Empty folders count, unlike in git."""
    before = set(os.listdir(ROOT))
    yield
    new = sorted(set(os.listdir(ROOT)) - before)
    ignored = subprocess.run(["git", "check-ignore", *new], cwd=ROOT, capture_output=True, text=True).stdout.split("\n")
    assert not set(new) - set(ignored)


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


@pytest.fixture
def fresh_library(monkeypatch):
    """The compiled library is looked for anew, in the test and after it."""
    monkeypatch.delenv("SPARSEMM_KERNELS", raising=False)
    from sparsemm.ops import library

    library.library.cache_clear()
    yield
    library.library.cache_clear()


@pytest.fixture(params=["library", "twin"])
def both(request, fresh_library, monkeypatch):
    """The test runs once with the library and once without."""
    if request.param == "twin":
        monkeypatch.setenv("SPARSEMM_KERNELS", "off")
    elif not import_module("sparsemm.ops.library").available():
        pytest.skip("no C++ compiler")
    return request.param


@pytest.fixture(scope="session")
def repository_template(tmp_path_factory) -> Path:
    """What `repository` copies."""
    return make_template(tmp_path_factory.mktemp("template"))


@pytest.fixture
def repository(repository_template, tmp_path, monkeypatch) -> Repository:
    """A repository of two models whose stages a stand-in makes; nothing has run yet, and this process is set for it."""
    return copy_repository(repository_template, tmp_path).enter(monkeypatch)


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
