"""The hub's protocol against a server that speaks it, in good and in bad moods."""

from __future__ import annotations

import os
import random

import pytest

from sparsemm import fetch
from sparsemm.errors import CorruptFetch, FetchError
from sparsemm.fetch import blocks, retry
from tests.faults import Repo

BIG = random.Random(0).randbytes(10_000)
SMALL = b'{"a": 1}\n'


@pytest.fixture(autouse=True)
def small_and_quick(monkeypatch):
    """Blocks of 1000 bytes; pauses, also huggingface_hub's, take no time."""
    monkeypatch.setattr(blocks, "BLOCK", 1000)
    monkeypatch.setattr("time.sleep", lambda _: None)


@pytest.fixture
def served(hub):
    hub.repos["org/data"] = Repo({"data/big.bin": BIG, "small.json": SMALL, "empty.txt": b""})
    return hub


def read(place, name):
    with place.files[name].open() as handle:
        return handle.read()


def test_files_sizes_licence_and_the_commit_of_the_branch(served, tmp_path):
    place = fetch.open_hub("org/data", tmp_path)
    repo = served.repos["org/data"]
    assert (place.address, place.revision, place.licence) == ("hub:org/data", repo.commit, "mit")
    assert {name: file.size for name, file in place.files.items()} == {
        "data/big.bin": 10_000,
        "empty.txt": 0,
        "small.json": len(SMALL),
    }
    assert served.sent == 0
    assert read(place, "data/big.bin") == BIG and read(place, "small.json") == SMALL and read(place, "empty.txt") == b""
    assert all(repo.commit in path for path in served.paths)  # never the branch, which may move


def test_only_what_is_read_is_fetched(served, tmp_path):
    with fetch.open_hub("org/data", tmp_path).files["data/big.bin"].open() as handle:
        handle.seek(-1500, 2)
        assert handle.read(10) == BIG[8500:8510]
    assert served.sent == 1000


def test_what_came_before_a_crash_is_not_fetched_again(served, tmp_path):
    handle = fetch.open_hub("org/data", tmp_path).files["data/big.bin"].open()
    handle.raw.read(2500)  # the process ends here, without closing anything
    handle.raw.seek(1000), handle.raw.read(1000), handle.raw.seek(2000), handle.raw.read(1000)
    before = served.sent
    assert before == 3000
    assert read(fetch.open_hub("org/data", tmp_path), "data/big.bin") == BIG
    assert served.sent == before + 7000


@pytest.mark.parametrize("fault", [429, 500, 503, "cut"])
def test_what_passes_by_itself_is_waited_for(served, tmp_path, fault):
    served.faults = [fault, None, fault, fault]
    assert read(fetch.open_hub("org/data", tmp_path), "data/big.bin") == BIG
    assert not served.faults


def test_a_silent_server_is_asked_again(served, tmp_path, monkeypatch):
    monkeypatch.setattr(retry, "TIMEOUT", 0.3)
    served.faults = [None, "stall"]
    assert read(fetch.open_hub("org/data", tmp_path), "data/big.bin") == BIG


@pytest.mark.parametrize(("fault", "words"), [(429, "429.*wait a while"), (500, "answers 500"), ("cut", "reached")])
def test_what_does_not_pass_is_told(served, tmp_path, fault, words):
    served.faults = [None, None] + [fault] * 50
    place = fetch.open_hub("org/data", tmp_path)
    with pytest.raises(FetchError, match=words):
        read(place, "data/big.bin")
    served.faults, before = [], served.sent
    assert before == 2000 and read(place, "data/big.bin") == BIG and served.sent == before + 8000


@pytest.mark.parametrize("name", ["data/big.bin", "small.json"])
def test_a_wrong_hash_is_thrown_away(served, tmp_path, name):
    served.faults = ["flip"]
    with pytest.raises(CorruptFetch, match="hash differs"):
        read(fetch.open_hub("org/data", tmp_path), name)
    assert read(fetch.open_hub("org/data", tmp_path), name) == served.repos["org/data"].files[name]


def test_blocks_that_the_disk_lost_are_fetched_again(served, tmp_path):
    assert read(fetch.open_hub("org/data", tmp_path), "data/big.bin") == BIG
    (data,) = [path for path in tmp_path.glob("*.data") if path.stat().st_size == len(BIG)]
    with open(data, "r+b") as handle:
        handle.seek(4200)
        handle.write(b"damage")
    os.truncate(data.with_suffix(".checksums"), 4 * 10 - 2)  # half of the last checksum is torn off
    before = served.sent
    assert read(fetch.open_hub("org/data", tmp_path), "data/big.bin") == BIG
    assert served.sent == before + 2000


def test_a_whole_file_is_saved_and_its_blocks_are_gone(served, tmp_path, monkeypatch):
    served.faults = [None, "cut", "flip"]  # wrong once: thrown away and fetched again
    target = tmp_path / "out" / "big.bin"
    named = []
    monkeypatch.setattr("os.fsync", lambda _: named.append(target.exists()))
    fetch.open_hub("org/data", tmp_path / "work").files["data/big.bin"].save(target)
    assert named == [False]  # on the disk before it has its name
    assert target.read_bytes() == BIG and not list((tmp_path / "work").iterdir())


def test_a_file_that_stays_wrong_is_never_there(served, tmp_path):
    served.faults = ["flip"] * 40
    with pytest.raises(CorruptFetch):
        fetch.open_hub("org/data", tmp_path / "work").files["data/big.bin"].save(tmp_path / "big.bin")
    assert not (tmp_path / "big.bin").exists()


def test_a_server_without_ranges(served, tmp_path, monkeypatch):
    handler = served.RequestHandlerClass
    original = handler.do_GET

    def ignore_ranges(self):
        del self.headers["Range"]
        original(self)

    monkeypatch.setattr(handler, "do_GET", ignore_ranges)
    assert read(fetch.open_hub("org/data", tmp_path), "data/big.bin") == BIG


def test_errors_say_what_to_do(served, tmp_path, monkeypatch):
    served.repos["org/gated"] = Repo({}, gated=True)
    for repo, revision, words in (
        ("org/none", None, "org/none: does not exist, or is private .*HF_TOKEN"),
        ("org/gated", None, "org/gated: is gated .*accept its terms"),
        ("org/data", "v9", "no revision 'v9'"),
        ("not an//id", None, "not a hub id"),
    ):
        with pytest.raises(FetchError, match=words):
            fetch.open_hub(repo, tmp_path, revision)
    served.trouble = [500, 503]
    assert fetch.open_hub("org/data", tmp_path).files
    served.trouble = [500] * 20
    with pytest.raises(FetchError, match="answers 500"):
        fetch.open_hub("org/data", tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(FetchError, match="cannot be reached.*network"):
        fetch.open_hub("org/data", tmp_path)


def test_offline_mode_is_told(served, tmp_path, monkeypatch):
    from huggingface_hub import close_session

    close_session()  # the mode is built into the client
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    try:
        with pytest.raises(FetchError, match="HF_HUB_OFFLINE"):
            fetch.open_hub("org/data", tmp_path)
    finally:
        close_session()


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"rfilename": "a.bin", "size": 3, "lfs": {"sha256": "0"}}, "org/data: its list of files"),
        ({"size": 3}, "org/data: its list of files"),
        ({"rfilename": "a.bin"}, "org/data: it does not state the size of a.bin"),
    ],
)
def test_a_mirror_that_is_no_hub_is_told(served, tmp_path, monkeypatch, facts, words):
    monkeypatch.setattr(Repo, "facts", lambda *_: facts)
    with pytest.raises(FetchError, match=words):
        fetch.open_hub("org/data", tmp_path)
