"""Blocks on disk: a full disk, and many readers."""

from __future__ import annotations

import errno
import io
import os
import shutil
import zipfile

import pytest

from sparsemm.errors import FetchError
from sparsemm.fetch import blocks
from sparsemm.fetch.blocks import Remote, open_remote, save_remote


def remote(data, verify=lambda path: True):
    return Remote("here", "1", len(data), lambda start, stop: data[start:stop], verify)


def test_it_is_a_file_like_any_other(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 100)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for i in range(20):
            archive.writestr(f"{i}.txt", str(i) * 50)
    data = buffer.getvalue()
    with open_remote(remote(data), tmp_path) as handle, zipfile.ZipFile(handle) as archive:
        assert archive.read("7.txt") == b"7" * 50 and archive.testzip() is None
    with open_remote(remote(data), tmp_path) as handle:
        assert handle.seek(0, os.SEEK_END) == len(data) == handle.tell() and handle.read() == b""
        handle.seek(95)
        assert handle.read(10) == data[95:105]
        with pytest.raises((ValueError, OSError)):
            handle.seek(-1)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told(tmp_path, monkeypatch, number):
    def full(*_):
        raise OSError(number, "no room")

    monkeypatch.setattr(os, "pwrite", full)
    with open_remote(remote(b"x" * 10), tmp_path) as handle, pytest.raises(FetchError, match="disk is full.*free some"):
        handle.read()


def test_a_file_larger_than_the_disk_is_not_even_begun(tmp_path, monkeypatch):
    asked = []
    big = Remote("here", "1", 10 * 2**30, lambda start, stop: asked.append(start) or b"", lambda path: True)
    usage = shutil.disk_usage(tmp_path)._replace(free=2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(FetchError, match=r"10\.0 GiB are needed"):
        save_remote(big, tmp_path, tmp_path / "out")
    assert not asked and not (tmp_path / "out").exists()


def test_other_content_under_the_same_name_has_other_blocks(tmp_path):
    for identity, data in (("1", b"old"), ("2", b"new")):
        now = Remote("here", identity, 3, lambda start, stop, data=data: data[start:stop], lambda path: True)
        with open_remote(now, tmp_path) as handle:
            assert handle.read() == data
