"""SynthDoG over the hub: only the rows that are wanted, and the same again after a crash."""

from __future__ import annotations

import pytest

from sparsemm.datasets import download
from sparsemm.datasets.records import Entry, read_about, read_records
from sparsemm.errors import CorruptFetch, DataError, ParamsError
from sparsemm.fetch import blocks
from tests.datasets.samples import params, parquet, png, synthdog_rows
from tests.faults import Repo

SOURCE = {"source": "hub", "repo": "nnethercott/synthdog-en-detection", "format": "synthdog"}


@pytest.fixture(autouse=True)
def small_and_quick(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 2**14)
    monkeypatch.setattr("time.sleep", lambda _: None)


@pytest.fixture
def repo(hub):
    hub.repos[SOURCE["repo"]] = Repo(
        {
            "README.md": b"---\nlicense: mit\n---\n",
            "data/train-00000-of-00002-0a1b.parquet": parquet(synthdog_rows(20)),
            "data/train-00001-of-00002-2c3d.parquet": parquet(synthdog_rows(20, first=20)),
        }
    )
    return hub.repos[SOURCE["repo"]]


def run(root, **given):
    download.run(params(**SOURCE | given), "mine", root)
    return read_records(root / "artifacts" / "datasets" / "mine.parquet")


def test_rows_become_records(repo, tmp_path):
    records = run(tmp_path)
    assert [r.id for r in records] == [f"synthdog-{i:06d}" for i in range(40)]
    assert records[25].entries == (
        Entry("page 25", (1.0, 2.0, 30.5, 12.0), "line"),
        Entry("below", (1.0, 20.0, 60.0, 32.0), "line"),
    )
    assert {r.source for r in records} == {f"hub:nnethercott/synthdog-en-detection@{repo.commit}"}
    assert {r.licence for r in records} == {"mit"}
    assert read_about(tmp_path / "artifacts" / "datasets" / "mine.parquet")["revision"] == repo.commit
    assert not (tmp_path / "artifacts" / "work" / "download" / "mine").exists()


def test_only_the_wanted_rows_are_fetched(repo, hub, tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 2**16)
    for name, first in (("data/train-00000-of-00002-0a1b.parquet", 0), ("data/train-00001-of-00002-2c3d.parquet", 40)):
        repo.files[name] = parquet(synthdog_rows(40, first, size=(200, 150)), group=10)
    whole = len(repo.files["data/train-00000-of-00002-0a1b.parquet"])
    assert len(run(tmp_path, samples=3)) == 3
    assert hub.sent < whole / 2 and not any("00001-of" in path for path in hub.paths)
    assert len(run(tmp_path, samples=40)) == 40  # all of the first file, and none of the second
    assert not any("00001-of" in path for path in hub.paths)
    hub.sent = 0  # the last row group of the second file
    assert [r.id for r in run(tmp_path, rows=[77, 79])] == ["synthdog-000077", "synthdog-000078"]
    assert hub.sent < whole / 2


def test_a_crash_in_the_middle_costs_nothing_twice(repo, hub, tmp_path):
    hub.faults = [None] * 9 + [403]
    with pytest.raises(Exception, match="may not read"):
        run(tmp_path)
    assert not (tmp_path / "artifacts" / "datasets" / "mine.parquet").exists()
    hub.faults = []
    assert len(run(tmp_path)) == 40
    assert hub.sent == sum(len(data) for name, data in repo.files.items() if name.endswith(".parquet"))


def test_a_damaged_file_is_fetched_once_more(repo, hub, tmp_path):
    hub.faults = [None] * 12 + ["flip"]
    assert len(run(tmp_path)) == 40
    hub.faults = ["flip"] * 1000
    with pytest.raises((CorruptFetch, DataError)):
        run(tmp_path, samples=39)


def test_a_pinned_revision_is_kept(repo, hub, tmp_path):
    assert len(run(tmp_path, revision=repo.commit, samples=1)) == 1
    with pytest.raises(Exception, match="no revision"):
        run(tmp_path, revision="b" * 40)


def test_a_bad_row_is_left_out(repo, hub, tmp_path):
    rows = synthdog_rows(21)
    rows[3]["image"]["bytes"] = png()[:-300]
    rows[7]["2_coord"][0]["coord"] = [[5.0, 5.0], [5.0, 9.0]]
    rows[9]["2_coord"] = []
    repo.files["data/train-00000-of-00002-0a1b.parquet"] = parquet(rows)
    assert len(run(tmp_path, max_bad=0.1)) == 38
    about = read_about(tmp_path / "artifacts" / "datasets" / "mine.parquet")
    assert "row 3: the image cannot be read" in about["bad"][0] and "row 7, 2_coord 0" in about["bad"][1]
    assert len(about["empty"]) == 1


def test_other_columns_and_other_splits_are_told(repo, hub, tmp_path):
    with pytest.raises(DataError, match="no parquet file of split 'test'.*there: train"):
        run(tmp_path, split="test")
    repo.files = {"data/train-00000-of-00001.parquet": parquet([{"image": b"", "text": ""}])}
    with pytest.raises(DataError, match="no column 2_coord.*there: image, text"):
        run(tmp_path)
    repo.files = {"train.parquet": b"PAR1 but not really PAR1"}
    with pytest.raises(DataError, match="train.parquet: not readable as parquet"):
        run(tmp_path)


def test_a_licence_must_be_known(repo, tmp_path):
    repo.licence = None
    with pytest.raises(ParamsError, match="does not name a licence"):
        run(tmp_path)
    assert run(tmp_path, licence="MIT", samples=1)[0].licence == "MIT"


def test_the_same_files_on_s3_give_the_same_records(repo, store, tmp_path):
    from_hub = run(tmp_path, samples=5)
    for name, data in repo.files.items():
        store.put_object(Bucket="bucket", Key=f"synthdog/{name}", Body=data)
    given = {"source": "s3", "location": "s3://bucket/synthdog", "format": "synthdog", "licence": "mit", "samples": 5}
    download.run(params(**given), "mine", tmp_path)
    from_s3 = read_records(tmp_path / "artifacts" / "datasets" / "mine.parquet")
    assert [(r.id, r.entries, r.image.tobytes()) for r in from_s3] == [
        (r.id, r.entries, r.image.tobytes()) for r in from_hub
    ]
    assert from_s3[0].source.startswith("s3://bucket/synthdog@")
