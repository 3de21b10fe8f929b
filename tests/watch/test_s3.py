import pytest

from sparsemm.errors import WatchError
from sparsemm.models import content_revision
from sparsemm.params import WatchParams
from sparsemm.watch import newest
from tests.watch.checkpoints import write_checkpoint

WATCHED = WatchParams(source="s3", location="s3://bucket/models/k")


def upload(client, folder, skip=()):
    for path in folder.iterdir():
        if path.name not in skip:
            client.upload_file(str(path), "bucket", f"models/k/{path.name}")


def test_a_checkpoint_is_fetched_once_and_again_when_it_changes(store, tmp_path):
    source = write_checkpoint(tmp_path / "source", 1.0, shards=2)
    upload(store, source)
    first = newest(WATCHED, "k", tmp_path)
    assert first.revision == content_revision(source) == content_revision(tmp_path / first.checkpoint)
    marker = tmp_path / first.checkpoint / "config.json"
    before = marker.stat().st_mtime_ns
    assert newest(WATCHED, "k", tmp_path) == first and marker.stat().st_mtime_ns == before
    upload(store, write_checkpoint(source, 2.0, shards=2))
    second = newest(WATCHED, "k", tmp_path)
    assert second.revision != first.revision and second.checkpoint != first.checkpoint


def test_half_an_upload_is_nothing_yet(store, tmp_path):
    source = write_checkpoint(tmp_path / "source", shards=2)
    upload(store, source, skip=("model-1.safetensors",))
    assert newest(WATCHED, "k", tmp_path) is None
    assert not list((tmp_path / "data" / "incoming" / "k").iterdir())
    upload(store, source)
    assert newest(WATCHED, "k", tmp_path) is not None


def test_an_empty_prefix_is_nothing(store, tmp_path):
    assert newest(WATCHED, "k", tmp_path) is None


def test_a_name_that_leads_out_is_refused(store, tmp_path):
    store.put_object(Bucket="bucket", Key="models/k/../../../out.txt", Body=b"x")
    with pytest.raises(WatchError, match="leads out"):
        newest(WATCHED, "k", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("location", ["s3://", "b/models", "https://b/models"])
def test_a_location_of_another_kind_is_refused(location, tmp_path):
    with pytest.raises(WatchError, match="s3://bucket/prefix"):
        newest(WatchParams(source="s3", location=location), "k", tmp_path)


def test_a_missing_bucket_or_store_is_an_error_without_secrets(store, tmp_path, monkeypatch):
    with pytest.raises(WatchError, match="NoSuchBucket") as caught:
        newest(WatchParams(source="s3", location="s3://none/k"), "k", tmp_path)
    assert "canary" not in str(caught.value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda _: None)  # between boto's retries
    with pytest.raises(WatchError, match="AWS_ENDPOINT_URL") as caught:
        newest(WATCHED, "k", tmp_path)
    assert "canary" not in str(caught.value)


def test_a_download_that_broke_off_goes_on_where_it_was(store, store_proxy, tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    source = write_checkpoint(tmp_path / "source", shards=2)
    upload(store, source)
    sizes = sum(path.stat().st_size for path in source.iterdir())
    store_proxy.faults = [None, None, "expired"]
    with pytest.raises(WatchError, match="credentials have expired.*renew them"):
        newest(WATCHED, "k", tmp_path)
    incoming = tmp_path / "data" / "incoming" / "k"
    assert not [path for path in incoming.iterdir() if path.name[0] != "."]
    assert 0 < store_proxy.sent < sizes
    store_proxy.faults = ["flip"]  # and one file arrives damaged
    found = newest(WATCHED, "k", tmp_path)
    assert found.revision == content_revision(source)
    assert [path.name for path in incoming.iterdir()] == [(tmp_path / found.checkpoint).name]


def test_what_is_left_of_another_revision_is_cleared_away(store, store_proxy, tmp_path):
    upload(store, write_checkpoint(tmp_path / "source", 1.0, shards=2))
    store_proxy.faults = [None, "expired"]
    with pytest.raises(WatchError):
        newest(WATCHED, "k", tmp_path)
    upload(store, write_checkpoint(tmp_path / "source", 2.0, shards=2))
    found = newest(WATCHED, "k", tmp_path)
    incoming = tmp_path / "data" / "incoming" / "k"
    assert [path.name for path in incoming.iterdir()] == [(tmp_path / found.checkpoint).name]
