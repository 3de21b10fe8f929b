import os
import shutil

import pytest

from sparsemm.errors import WatchError
from sparsemm.models import content_revision
from sparsemm.params import WatchParams
from sparsemm.watch import arrival as module
from sparsemm.watch import newest
from tests.watch.checkpoints import write_checkpoint


def watched(location="in"):
    return WatchParams(source="folder", location=location, settle_seconds=0.0)


def test_the_newest_complete_subfolder_is_taken(tmp_path):
    old = write_checkpoint(tmp_path / "in" / "v1", 1.0)
    new = write_checkpoint(tmp_path / "in" / "v2", 2.0)
    os.utime(old / "config.json", (100, 100))
    os.utime(new / "config.json", (200, 200))
    assert newest(watched(), "k", tmp_path).checkpoint == "in/v2"
    (new / "model.safetensors").unlink()
    found = newest(watched(), "k", tmp_path)
    assert (found.checkpoint, found.revision) == ("in/v1", content_revision(old))


def test_the_folder_itself_may_be_the_checkpoint(tmp_path):
    write_checkpoint(tmp_path / "in")
    assert newest(watched(), "k", tmp_path).checkpoint == "in"
    assert newest(watched(str(tmp_path / "in")), "k", tmp_path / "elsewhere").checkpoint == str(tmp_path / "in")


def test_nothing_complete_is_nothing(tmp_path):
    (tmp_path / "in").mkdir()
    assert newest(watched(), "k", tmp_path) is None


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(WatchError, match="no such folder"):
        newest(watched(), "k", tmp_path)


def test_a_folder_that_is_cleared_up_meanwhile_is_an_error(tmp_path, monkeypatch):
    folder = write_checkpoint(tmp_path / "in" / "v1")
    monkeypatch.setattr("sparsemm.watch.sources.is_complete", lambda *_: shutil.rmtree(folder) or True)
    with pytest.raises(WatchError, match="cannot be read"):
        newest(watched(), "k", tmp_path)


def test_contents_are_hashed_again_only_when_they_may_have_changed(tmp_path, monkeypatch):
    folder = write_checkpoint(tmp_path / "in")
    hashed = []
    monkeypatch.setattr(module, "content_revision", lambda path: hashed.append(path) or content_revision(path))
    first = newest(watched(), "k", tmp_path)
    assert newest(watched(), "k", tmp_path) == first and len(hashed) == 1
    write_checkpoint(folder, 5.0)
    assert newest(watched(), "k", tmp_path).revision != first.revision and len(hashed) == 2
    (tmp_path / "artifacts" / "work" / "watch" / "k.json").write_text("{damaged")
    newest(watched(), "k", tmp_path)
    assert len(hashed) == 3
