import json
import os
import struct
import time

import pytest

from sparsemm.watch.arrival import is_complete, relative, stamp
from tests.watch.checkpoints import write_checkpoint


@pytest.mark.parametrize("shards", [1, 3])
def test_a_whole_checkpoint_is_complete(tmp_path, shards):
    assert is_complete(write_checkpoint(tmp_path / "c", shards=shards))


def cut(path, by=1):
    """Shorten a file by some bytes, or lengthen it."""
    content = path.read_bytes()
    path.write_bytes(content[:-by] if by > 0 else content + b"x" * -by)


def header(path, text):
    """Write a file that is a header alone."""
    path.write_bytes(struct.pack("<Q", len(text)) + text)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda f: (f / "config.json").unlink(),
        lambda f: (f / "config.json").write_text("{"),
        lambda f: (f / "config.json").write_text("[]"),
        lambda f: (f / "model-1.safetensors").unlink(),
        lambda f: cut(f / "model-1.safetensors"),
        lambda f: cut(f / "model-1.safetensors", 60),
        lambda f: (f / "model-1.safetensors").write_bytes(b""),
        lambda f: (f / "model-1.safetensors").write_bytes(b"\xff" * 8),
        lambda f: header(f / "model-1.safetensors", b"[" * 100_000),
        lambda f: header(f / "model-1.safetensors", b'{"a": {"data_offsets": [0, "2"]}}'),
        lambda f: header(f / "model-1.safetensors", b'{"a": {"data_offsets": [0]}}'),
        lambda f: cut(f / "model-1.safetensors", -4),
        lambda f: (f / "model.safetensors.index.json").write_text("{}"),
        lambda f: (f / "model.safetensors.index.json").write_text(json.dumps({"weight_map": []})),
    ],
)
def test_what_is_not_whole_is_not_complete(tmp_path, spoil):
    folder = write_checkpoint(tmp_path / "c", shards=2)
    result = spoil(folder)
    assert not is_complete(folder), result


def test_a_config_alone_or_nothing_is_not_complete(tmp_path):
    assert not is_complete(tmp_path) and not is_complete(tmp_path / "none")
    (tmp_path / "config.json").write_text("{}")
    assert not is_complete(tmp_path)


def test_a_folder_must_have_settled(tmp_path):
    folder = write_checkpoint(tmp_path / "c")
    assert not is_complete(folder, settle_seconds=60)
    before = time.time() - 120
    for path in folder.iterdir():
        os.utime(path, (before, before))
    assert is_complete(folder, settle_seconds=60)


def test_a_stamp_follows_names_sizes_and_times(tmp_path):
    folder = write_checkpoint(tmp_path / "c")
    first = stamp(folder)
    assert stamp(folder) == first
    os.utime(folder / "config.json", (1, 1))
    second = stamp(folder)
    (folder / "new.json").write_text("{}")
    assert len({first, second, stamp(folder)}) == 3


def test_folders_inside_the_repository_are_named_from_it(tmp_path):
    assert relative(tmp_path / "root" / "data" / "x", tmp_path / "root") == "data/x"
    assert relative(tmp_path / "elsewhere", tmp_path / "root") == str(tmp_path / "elsewhere")
