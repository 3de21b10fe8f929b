"""S3 against moto's server, and a proxy before it that misbehaves."""

from __future__ import annotations

import random

import pytest

from sparsemm import fetch
from sparsemm.errors import CorruptFetch, FetchError
from sparsemm.fetch import blocks, retry

BIG = random.Random(0).randbytes(10_000)
PARTS = random.Random(1).randbytes(6 * 2**20)  # a part has at least 5 MiB


@pytest.fixture(autouse=True)
def small_and_quick(monkeypatch):
    """Blocks of 1000 bytes; pauses, also botocore's, take no time."""
    monkeypatch.setattr(blocks, "BLOCK", 1000)
    monkeypatch.setattr("time.sleep", lambda _: None)


@pytest.fixture
def served(store, store_proxy):
    store.put_object(Bucket="bucket", Key="set/data/big.bin", Body=BIG)
    store.put_object(Bucket="bucket", Key="set/small.txt", Body=b"small")
    store.put_object(Bucket="bucket", Key="set/folder/", Body=b"")
    store.put_object(Bucket="bucket", Key="settings.txt", Body=b"another prefix")
    return store_proxy


def read(place, name):
    with place.files[name].open() as handle:
        return handle.read()


def test_files_below_the_prefix_and_a_revision_of_their_contents(served, store, tmp_path):
    place = fetch.open_s3("s3://bucket/set", tmp_path)
    assert list(place.files) == ["data/big.bin", "small.txt"] and place.licence is None
    assert read(place, "data/big.bin") == BIG and read(place, "small.txt") == b"small"
    assert fetch.open_s3("s3://bucket/set/", tmp_path, place.revision).revision == place.revision
    store.put_object(Bucket="bucket", Key="set/small.txt", Body=b"other")
    with pytest.raises(FetchError, match=f"names {place.revision}"):
        fetch.open_s3("s3://bucket/set", tmp_path, place.revision)


def test_only_what_is_read_is_fetched_and_never_twice(served, tmp_path):
    with fetch.open_s3("s3://bucket/set", tmp_path).files["data/big.bin"].open() as handle:
        handle.seek(8500)
        assert handle.read(10) == BIG[8500:8510]
    assert served.sent == 1000
    assert read(fetch.open_s3("s3://bucket/set", tmp_path), "data/big.bin") == BIG
    assert served.sent == 10_000


@pytest.mark.parametrize("fault", [429, 500, 503, "cut"])
def test_what_passes_by_itself_is_waited_for(served, tmp_path, fault):
    served.faults = [fault, None, fault, fault]
    assert read(fetch.open_s3("s3://bucket/set", tmp_path), "data/big.bin") == BIG
    assert not served.faults


def test_a_silent_store_is_asked_again(served, tmp_path, monkeypatch):
    monkeypatch.setattr(retry, "TIMEOUT", 0.3)
    served.faults = [None, "stall"]
    assert read(fetch.open_s3("s3://bucket/set", tmp_path), "data/big.bin") == BIG


@pytest.mark.parametrize(
    ("fault", "words"), [("expired", "expired.*renew them"), (403, "refuses"), ("cut", "cannot be reached")]
)
def test_what_does_not_pass_is_told_without_secrets(served, tmp_path, fault, words):
    served.faults = [None, None] + [fault] * 50
    place = fetch.open_s3("s3://bucket/set", tmp_path)
    with pytest.raises(FetchError, match=words) as caught:
        read(place, "data/big.bin")
    assert "canary" not in str(caught.value)
    served.faults, before = [], served.sent
    assert before == 2000 and read(place, "data/big.bin") == BIG and served.sent == before + 8000


def test_an_object_that_changes_while_it_is_read_is_refused(served, store, tmp_path):
    with fetch.open_s3("s3://bucket/set", tmp_path).files["data/big.bin"].open() as handle:
        handle.read(10)
        store.put_object(Bucket="bucket", Key="set/data/big.bin", Body=BIG[::-1])
        with pytest.raises(FetchError, match="changed while it was read"):
            handle.read()
    assert read(fetch.open_s3("s3://bucket/set", tmp_path), "data/big.bin") == BIG[::-1]


def test_a_wrong_hash_is_thrown_away(served, tmp_path):
    served.faults = [None, "flip"]
    with pytest.raises(CorruptFetch, match="hash differs"):
        read(fetch.open_s3("s3://bucket/set", tmp_path), "data/big.bin")
    assert read(fetch.open_s3("s3://bucket/set", tmp_path), "data/big.bin") == BIG


def test_a_checksum_of_the_store_is_looked_at(served, tmp_path):
    served.faults = ["flip"]
    assert read(fetch.open_s3("s3://bucket/set", tmp_path), "small.txt") == b"small"  # asked for again at once
    served.faults = ["flip"] * 50
    with pytest.raises(CorruptFetch, match="promised"):
        read(fetch.open_s3("s3://bucket/set", tmp_path / "afresh"), "small.txt")


def test_an_object_uploaded_in_parts_is_verified_too(served, store, tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 2**20)
    upload = store.create_multipart_upload(Bucket="bucket", Key="parts/x.bin")["UploadId"]
    size = 5 * 2**20
    parts = []
    for number, start in enumerate(range(0, len(PARTS), size), 1):
        options = {"Bucket": "bucket", "Key": "parts/x.bin", "UploadId": upload, "PartNumber": number}
        etag = store.upload_part(Body=PARTS[start : start + size], **options)["ETag"]
        parts.append({"ETag": etag, "PartNumber": number})
    options = {"Bucket": "bucket", "Key": "parts/x.bin", "UploadId": upload}
    assert store.complete_multipart_upload(MultipartUpload={"Parts": parts}, **options)["ETag"].endswith('-2"')
    place = fetch.open_s3("s3://bucket/parts", tmp_path / "work")
    served.faults = ["flip"]
    with pytest.raises(CorruptFetch):
        read(place, "x.bin")
    place.files["x.bin"].save(tmp_path / "x.bin")
    assert (tmp_path / "x.bin").read_bytes() == PARTS


def test_errors_say_what_to_do(served, tmp_path, monkeypatch):
    for location, words in (
        ("s3://none/x", "NoSuchBucket.*bucket and prefix"),
        ("bucket/none", "not s3://"),
    ):
        with pytest.raises(FetchError, match=words):
            fetch.open_s3(location, tmp_path)
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(FetchError, match="cannot be reached.*AWS_ENDPOINT_URL") as caught:
        fetch.open_s3("s3://bucket/set", tmp_path)
    assert "canary" not in str(caught.value) and len(pauses) == retry.ATTEMPTS - 1  # it may be starting
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(FetchError, match="no credentials.*AWS_ACCESS_KEY_ID"):
        fetch.open_s3("s3://bucket/set", tmp_path)
