"""Names of artifacts stay in their folder, and files are what they were."""

from __future__ import annotations

import json

import pytest

from sparsemm.errors import RegistryError
from sparsemm.files import write_json
from sparsemm.registry import manifest


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/etc/passwd",
        "..",
        "../x",
        "a/../b",
        "a//b",
        "a/",
        "./a",
        "a\\..\\b",
        "C:/x",
        ".hidden",
        "a\n",
        "a b",
        "a\0",
        None,
    ],
)
def test_names_that_escape_are_refused(name):
    with pytest.raises(RegistryError, match="not a valid artifact name"):
        manifest.safe_name(name)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "m.csv").write_text("rank,value\n")
    (tmp_path / "empty.txt").write_bytes(b"")
    return tmp_path


def test_every_file_is_listed_and_checked(folder):
    listed = manifest.build(folder, key="m")
    assert set(listed["files"]) == {"scores/m.csv", "empty.txt"} and listed["key"] == "m"
    write_json(folder / manifest.NAME, listed)
    assert manifest.parse(folder / manifest.NAME) == listed
    manifest.check(folder, listed, list(listed["files"]))
    (folder / "scores" / "m.csv").write_text("rank,value!")  # as long as before
    with pytest.raises(RegistryError, match="scores/m.csv: not the file"):
        manifest.check(folder, listed, list(listed["files"]))
    (folder / "empty.txt").unlink()
    with pytest.raises(RegistryError, match="empty.txt: not the file"):
        manifest.check(folder, listed, ["empty.txt"])
    with pytest.raises(RegistryError, match="not in the manifest"):
        manifest.check(folder, listed, ["other"])


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"format": 1}',
        '{"format": 2, "files": {}}',
        '{"format": 1, "files": {"a": {"sha256": "x", "size": 1}}}',
        '{"format": 1, "files": {"a": 1}}',
        json.dumps({"format": 1, "files": {"../a": {"sha256": "0" * 64, "size": 1}}}),
        "[" * 100_000,
        " " * (2 << 20),
    ],
    ids=lambda text: text[:20],
)
def test_what_is_no_manifest_is_refused(tmp_path, content):
    path = tmp_path / manifest.NAME
    path.write_text(content)
    with pytest.raises(RegistryError):
        manifest.parse(path)
