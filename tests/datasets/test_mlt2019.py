"""ICDAR 2019 MLT as published: archives as they are, or unpacked."""

from __future__ import annotations

import io
import tarfile
import zipfile
from functools import partial

import pytest

from sparsemm.datasets import download
from sparsemm.datasets.records import Entry, read_about, read_records
from sparsemm.errors import DataError
from sparsemm.fetch import blocks
from tests.datasets.samples import download_files, params, png

LABELS = (
    "\ufeff30,20,50,22,49,32,29,30,Latin,right, of the comma\r\n"
    "2,21,20,20,20,31,2,30,Arabic,مرحبا\r\n"
    "2,2,40,2,40,12,2,12,Chinese,出口\r\n"
    "41,2,58,2,58,12,41,12,None,###\r\n"
).encode()
ENTRIES = (
    Entry("出口", (2.0, 2.0, 40.0, 12.0), "line"),
    Entry("مرحبا", (2.0, 20.0, 20.0, 31.0), "word"),
    Entry("right, of the comma", (29.0, 20.0, 50.0, 32.0), "word"),
)
GIVEN = {"format": "mlt2019", "licence": "CC-BY-4.0", "max_bad": 0.9}


def zipped(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


@pytest.fixture
def run(tmp_path):
    """`run(files, **params)`: the records of a folder with these files."""
    return partial(download_files, tmp_path, source="folder", path="mlt", **GIVEN)


def test_quads_of_several_scripts(run):
    first, second = run(
        {
            "images/tr_img_00001.jpg": png(),
            "images/tr_img_00002.png": png(seed=1),
            "gt/tr_img_00001.txt": LABELS,
            "gt/gt_tr_img_00002.txt": LABELS.splitlines()[2],
            "gt/readme.txt": b"not labels",
        }
    )
    assert first.id == "mlt2019-tr_img_00001" and first.entries == ENTRIES
    assert second.id == "mlt2019-tr_img_00002" and second.entries == ENTRIES[:1]


def test_archives_on_a_store_are_read_where_they_lie(store, store_proxy, tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 4096)
    images = {f"ImagesPart1/tr_img_{i:05d}.jpg": png(100, 80, seed=i) for i in range(1, 31)}
    labels = {f"tr_img_{i:05d}.txt": LABELS for i in range(1, 31)}
    for name, data in (("ImagesPart1.zip", zipped(images)), ("train_gt_t13.zip", zipped(labels))):
        store.put_object(Bucket="bucket", Key=f"mlt/{name}", Body=data)
    given = {"source": "s3", "location": "s3://bucket/mlt", "rows": [4, 6]} | GIVEN
    download.run(params(**given), "mine", tmp_path)
    records = read_records(tmp_path / "artifacts" / "datasets" / "mine.parquet")
    assert [r.id for r in records] == ["mlt2019-tr_img_00005", "mlt2019-tr_img_00006"]
    assert records[0].entries[0].text == "出口"
    assert store_proxy.sent < len(zipped(images)) / 4


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (b"1,2,3\n", "line 1: not x1,y1"),
        (b"1,2,3,4,5,6,7,8,Klingon,x\n", "line 1: not x1,y1"),
        (b"a,2,3,4,5,6,7,8,Latin,x\n", "are not points"),
        (b"1,2,1,2,1,2,1,2,Latin,x\n", "empty or outside"),
        (b"1,2,9,2,9,9,1,9,Latin,\n", "text is empty"),
        ("1,2,9,2,9,9,1,9,Latin,ü\n".encode("latin-1"), "not UTF-8"),
    ],
)
def test_a_bad_label_file_is_left_out(run, tmp_path, labels, reason):
    files = {"tr_img_1.jpg": png(), "tr_img_2.jpg": png(), "tr_img_1.txt": LABELS, "tr_img_2.txt": labels}
    assert len(run(files)) == 1
    (bad,) = read_about(tmp_path / "artifacts" / "datasets" / "mine.parquet")["bad"]
    assert reason in bad and "tr_img_2" in bad


def test_missing_pieces_are_told(run, tmp_path):
    with pytest.raises(DataError, match="no label file.*tr_img_00001.txt"):
        run({"tr_img_1.jpg": png()})
    assert len(run({"tr_img_1.txt": LABELS, "tr_img_7.txt": LABELS})) == 1
    assert "no image tr_img_7" in read_about(tmp_path / "artifacts" / "datasets" / "mine.parquet")["bad"][0]
    assert len(run({"broken.zip": zipped({"tr_img_9.txt": LABELS})[:-40]})) == 1
    assert "broken.zip: not a readable archive" in read_about(tmp_path / "artifacts/datasets/mine.parquet")["bad"][0]


def test_a_word_that_nobody_can_read_is_no_word(run, tmp_path):
    run({"tr_img_1.jpg": png(), "tr_img_1.txt": LABELS, "tr_img_2.jpg": png(), "tr_img_2.txt": LABELS.splitlines()[3]})
    assert len(read_about(tmp_path / "artifacts" / "datasets" / "mine.parquet")["empty"]) == 1


def test_a_damaged_member_is_one_bad_row(run, tmp_path):
    data = bytearray(zipped({"tr_img_1.jpg": png(), "tr_img_2.jpg": png(seed=1)}))
    data[200] ^= 1  # in the first image; the archive's CRC notices
    labels = {"tr_img_1.txt": LABELS, "tr_img_2.txt": LABELS}
    assert [r.id for r in run({"images.zip": bytes(data), "gt.zip": zipped(labels)})] == ["mlt2019-tr_img_2"]
    assert "Bad CRC" in read_about(tmp_path / "artifacts" / "datasets" / "mine.parquet")["bad"][0]


def test_tar_archives_too(run):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in (("x/tr_img_1.txt", LABELS), ("../../tr_img_1.jpg", png())):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    assert run({"all.tar.gz": buffer.getvalue()})[0].entries == ENTRIES
