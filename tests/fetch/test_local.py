"""Local files as a place."""

from __future__ import annotations

import pytest

from sparsemm import fetch
from sparsemm.errors import FetchError


def test_files_of_subfolders_without_hidden_ones(tmp_path):
    for name in ("b/2.txt", "a.txt", ".hidden", "b/.git/x"):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_text(name)
    place = fetch.open_local("set", tmp_path)
    assert list(place.files) == ["a.txt", "b/2.txt"] and place.files["b/2.txt"].size == 7
    with place.files["b/2.txt"].open() as handle:
        assert handle.read() == b"b/2.txt"
    place.files["a.txt"].save(tmp_path / "copy.txt")
    assert (tmp_path / "copy.txt").read_text() == "a.txt"


def test_the_revision_is_of_the_contents(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.txt").write_text("1")
    held = fetch.open_local("set", tmp_path).revision
    (tmp_path / "set").rename(tmp_path / "moved")
    assert fetch.open_local("moved", tmp_path, held).revision == held
    (tmp_path / "moved" / "a.txt").write_text("2")
    with pytest.raises(FetchError, match=f"names {held}"):
        fetch.open_local("moved", tmp_path, held)
    (tmp_path / "one.txt").write_text("x")
    assert list(fetch.open_local("one.txt", tmp_path).files) == ["one.txt"]


def test_a_missing_folder_is_told(tmp_path):
    with pytest.raises(FetchError, match="none: no such file or folder"):
        fetch.open_local("none", tmp_path)
