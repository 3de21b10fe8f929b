"""Checkpoints of the hub: through huggingface_hub's own cache, hashes looked at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sparsemm.cli import main
from sparsemm.errors import CorruptFetch, FetchError
from sparsemm.fetch import fetch_checkpoint, retry
from sparsemm.models import load_model, new_entry
from sparsemm.params import load_params
from tests.faults import Repo
from tests.servers import wait_for

CHECKPOINT = Path(__file__).parent.parent.parent / "data" / "checkpoints" / "tiny-qwen2-vl"


@pytest.fixture
def served(hub, tmp_path, monkeypatch):
    """A hub with a small checkpoint at org/model, and files that nobody needs."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_XET_CACHE", str(tmp_path / "xet"), raising=False)
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setattr(retry, "ATTEMPTS", 3)
    files = {path.name: path.read_bytes() for path in CHECKPOINT.iterdir() if path.is_file() and path.name[0] != "."}
    hub.repos["org/model"] = Repo(files | {"pytorch_model.bin": b"pickle", "onnx/model.onnx": b"x"})
    return hub


def test_only_what_is_loaded_is_fetched_and_only_once(served, tmp_path):
    entry = new_entry("org/model")
    assert entry.revision == served.repos["org/model"].commit  # of main, recorded
    model, _ = load_model(entry)
    assert model.config.model_type == "qwen2_vl"
    assert not any(path.endswith((".bin", ".onnx")) for path in served.paths)
    asked = len(served.paths)
    folder = fetch_checkpoint("org/model", entry.revision)
    assert len(served.paths) == asked and folder.name == entry.revision


@pytest.mark.parametrize("fault", [500, 429, "cut"])
def test_what_passes_by_itself_is_waited_for(served, fault):
    served.faults = [fault, None, fault, None, fault]
    folder = fetch_checkpoint("org/model")
    for name in ("config.json", "model.safetensors"):
        assert (folder / name).read_bytes() == (CHECKPOINT / name).read_bytes()


def test_a_damaged_file_is_fetched_once_more(served):
    served.faults = ["flip"]
    folder = fetch_checkpoint("org/model")
    for path in sorted(folder.iterdir()):
        assert path.read_bytes() == (CHECKPOINT / path.name).read_bytes()


def test_killed_in_the_middle_it_goes_on_where_it_was(served, tmp_path):
    environment = dict(os.environ) | {"HF_ENDPOINT": served.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
    code = (
        "from sparsemm.fetch import blocks, fetch_checkpoint; blocks.BLOCK = 2**20; blocks.WORKERS = 1\n"
        "print(fetch_checkpoint('org/model'))"
    )
    command = [sys.executable, "-c", code]
    root = CHECKPOINT.parent.parent.parent
    served.faults = [None] * sorted(path.name for path in CHECKPOINT.iterdir()).index("model.safetensors")
    served.faults += [None, None, "stall"]  # after two of the five blocks of the weights
    asked = len(served.faults)
    child = subprocess.Popen(command, cwd=root, env=environment, stderr=subprocess.DEVNULL)
    wait_for(lambda: len(served.paths) == asked, "the third block")
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not [path for path in (tmp_path / "sparsemm" / "org--model").iterdir() if path.name[0] != "."]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in CHECKPOINT.iterdir()
    }
    assert served.sent == sum(path.stat().st_size for path in CHECKPOINT.iterdir())  # nothing came twice


def test_what_huggingface_hub_has_is_not_fetched_again(served, tmp_path):
    from huggingface_hub import hf_hub_download

    weights = Path(hf_hub_download("org/model", "model.safetensors"))
    before = served.sent
    folder = fetch_checkpoint("org/model")
    assert served.sent - before < weights.stat().st_size
    assert (folder / "model.safetensors").samefile(weights.resolve())


def test_what_huggingface_hub_has_is_looked_at_first(served):
    from huggingface_hub import hf_hub_download

    weights = Path(hf_hub_download("org/model", "model.safetensors"))
    weights.resolve().write_bytes(b"damaged since")
    assert (fetch_checkpoint("org/model") / "model.safetensors").read_bytes() == (
        CHECKPOINT / weights.name
    ).read_bytes()


def test_a_checkpoint_without_safetensors_is_refused(served):
    served.repos["org/old"] = Repo({"config.json": b"{}", "pytorch_model.bin": b"pickle"})
    with pytest.raises(FetchError, match="no safetensors"):
        fetch_checkpoint("org/old")


def test_a_file_that_stays_damaged_is_never_left_there(served):
    served.faults = ["flip"] * 1000
    with pytest.raises(CorruptFetch, match="org/model@.*hash differs"):
        fetch_checkpoint("org/model")
    served.faults = []
    assert (fetch_checkpoint("org/model") / "model.safetensors").stat().st_size > 0


def test_without_a_connection_the_cache_is_enough(served, monkeypatch):
    folder = fetch_checkpoint("org/model")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert fetch_checkpoint("org/model", folder.name) == folder
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert fetch_checkpoint("org/model", folder.name) == folder
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(FetchError, match="cannot be reached"):
        fetch_checkpoint("org/other")


def test_a_gated_or_missing_checkpoint_is_told(served):
    served.repos["org/gated"] = Repo({}, gated=True)
    for name, words in (("org/gated", "is gated.*accept its terms"), ("org/none", "does not exist, or is private")):
        with pytest.raises(FetchError, match=words):
            fetch_checkpoint(name)


def test_a_checkpoint_on_a_store_can_be_added(store, tmp_path, capsys):
    for path in CHECKPOINT.iterdir():
        if path.is_file():
            store.upload_file(str(path), "bucket", f"models/tiny/{path.name}")
    params = tmp_path / "params.yaml"
    params.write_bytes((CHECKPOINT.parent.parent.parent / "params.yaml").read_bytes())
    command = ["--params", str(params), "--root", str(tmp_path), "models", "add"]
    assert main([*command, "s3://bucket/models/tiny", "--key", "mirrored"]) == 0
    entry = load_params(params).models["mirrored"]
    assert entry.family == "qwen2_vl" and "data/incoming/mirrored" in entry.checkpoint
    assert main([*command, "s3://bucket/models/none"]) != 0
    assert "no complete checkpoint" in capsys.readouterr().err
