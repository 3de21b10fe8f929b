"""Checkpoints of the hub: through huggingface_hub's own cache, hashes looked at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsemm.cli import main
from sparsemm.errors import CorruptFetch, FetchError
from sparsemm.fetch import checkpoint, patience
from sparsemm.models import load_model, new_entry
from sparsemm.params import load_params
from tests.faults import Repo

CHECKPOINT = Path(__file__).parent.parent.parent / "data" / "checkpoints" / "tiny-qwen2-vl"


@pytest.fixture
def served(hub, tmp_path, monkeypatch):
    """A hub with a small checkpoint at org/model, and files that nobody needs."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_XET_CACHE", str(tmp_path / "xet"), raising=False)
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setattr(patience, "ATTEMPTS", 3)
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
    folder = checkpoint("org/model", entry.revision)
    assert len(served.paths) == asked and folder.name == entry.revision


@pytest.mark.parametrize("fault", [500, 429, "cut"])
def test_what_passes_by_itself_is_waited_for(served, fault):
    served.faults = [fault, None, fault, None, fault]
    folder = checkpoint("org/model")
    for name in ("config.json", "model.safetensors"):
        assert (folder / name).read_bytes() == (CHECKPOINT / name).read_bytes()


def test_a_damaged_file_is_fetched_once_more(served):
    served.faults = ["flip"]
    folder = checkpoint("org/model")
    for path in folder.iterdir():
        assert path.read_bytes() == (CHECKPOINT / path.name).read_bytes()


def test_a_file_that_stays_damaged_is_never_left_there(served):
    served.faults = ["flip"] * 1000
    with pytest.raises(CorruptFetch, match="model.safetensors.*hash differs"):
        checkpoint("org/model")
    served.faults = []
    assert (checkpoint("org/model") / "model.safetensors").stat().st_size > 0


def test_without_a_connection_the_cache_is_enough(served, monkeypatch):
    folder = checkpoint("org/model")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert checkpoint("org/model", folder.name) == folder
    with pytest.raises(FetchError, match="cannot be reached"):
        checkpoint("org/other")


def test_a_gated_or_missing_checkpoint_is_told(served):
    served.repos["org/gated"] = Repo({}, gated=True)
    for name, words in (("org/gated", "is gated.*accept its terms"), ("org/none", "does not exist, or is private")):
        with pytest.raises(FetchError, match=words):
            checkpoint(name)


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
