"""Whatever one file, row or word raises costs that file, row or word, and never the run."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from dataclasses import replace

import pytest
from PIL import Image

from sparsemm.datasets import download
from sparsemm.datasets.records import read_about
from sparsemm.errors import DataError
from tests.datasets.pdfs import pdf, text
from tests.datasets.samples import COCO_FEATURES, MINE, coco_rows, download_files, parquet, png, synthdog_rows
from tests.datasets.test_malformed import FORMATS, good

KINDS = (ValueError, NotImplementedError, OverflowError, RuntimeError, MemoryError, RecursionError, KeyError, OSError)


@pytest.fixture
def run(tmp_path):
    """`run(files, **params)`: the records of a folder, and what was left out as bad."""

    def run(files, **given):
        options = {"source": "folder", "path": "mine", "licence": "own", "max_bad": 0.9}
        return download_files(tmp_path, files, **options | given), read_about(tmp_path / MINE)["bad"]

    return run


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*FORMATS, "pdf"])
def test_whatever_a_row_raises_costs_the_row(run, name, kind, monkeypatch):
    files = {"a.pdf": pdf(*[(text([(20, 100, b"word")]), b"")] * 3)} if name == "pdf" else FORMATS[name](good(3))
    given = {"source": "pdf"} if name == "pdf" else {"format": name}
    rows = download.pdf.rows if name == "pdf" else download.FORMATS[name]

    def fail(*_):
        raise kind("at 0x7f001234")

    def second_fails(*arguments):
        for number, row in enumerate(rows(*arguments)):
            yield replace(row, read=fail) if number == 1 else row

    if name == "pdf":
        monkeypatch.setattr(download.pdf, "rows", second_fails)
    else:
        monkeypatch.setitem(download.FORMATS, name, second_fails)
    records, (bad,) = run(files, **given)
    assert len(records) == 2
    assert "0x7f001234" not in bad and "at 0x..." in bad


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_an_image_raises_costs_the_image(run, kind, monkeypatch):
    def fails(*_):
        raise kind("no such thing")

    monkeypatch.setattr("PIL.GifImagePlugin.GifImageFile.load", fails)
    buffer = io.BytesIO()
    Image.new("P", (60, 40)).save(buffer, format="GIF")
    rows = [*good(2), (buffer.getvalue(), "car", (2.0, 3.0, 30.0, 12.0))]
    records, (bad,) = run(FORMATS["records_jsonl"](rows), format="records_jsonl")
    assert len(records) == 2 and "the image cannot be read: " in bad


def test_a_parquet_file_that_is_damaged_costs_its_rows(run):
    whole = parquet(synthdog_rows(8), group=2)
    end = bytearray(parquet(synthdog_rows(8, 20), group=2))
    end[len(end) // 2 : len(end) // 2 + 2000] = b"\xff" * 2000
    files = {
        "train-00000-of-00004.parquet": whole[:100],
        "train-00001-of-00004.parquet": bytes(end),
        "train-00002-of-00004.parquet": parquet([{"image": b"x"}]),
        "train-00003-of-00004.parquet": whole,
    }
    records, bad = run(files, format="synthdog", samples=30)
    assert len(records) >= 8 and len(bad) >= 3
    assert "00000-of-00004.parquet: not readable as parquet" in bad[0]
    assert any("00002-of-00004.parquet: no column 2_coord" in one for one in bad)


def test_a_file_that_names_no_categories_costs_its_rows(run):
    files = {
        "val-00000-of-00002.parquet": parquet(coco_rows(1)),
        "val-00001-of-00002.parquet": parquet(coco_rows(3), COCO_FEATURES),
    }
    records, (bad,) = run(files, format="coco")
    assert len(records) == 3 and "does not name the categories" in bad


def test_a_line_that_is_too_long_costs_the_line(run, monkeypatch):
    lines = [json.dumps({"image": "a.png", "entries": [{"text": "hut", "box": [1, 2, 30, 12]}]}).encode()] * 2
    monkeypatch.setattr("sparsemm.datasets.archives.LARGEST", 100)
    lines.insert(1, b" " * 350)
    records, (bad,) = run({"a.png": png(), "all.jsonl": b"\n".join(lines)}, format="records_jsonl")
    assert [record.id for record in records] == ["all-1", "all-3"]
    assert "line 2 is larger than 100 bytes" in bad


def archives(files):
    """The files in a zip, and in a packed tar whose end is damaged."""
    zipped, tarred = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as handle:
        for name, data in files.items():
            handle.writestr(name, data)
    with tarfile.open(fileobj=tarred, mode="w") as packed:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            packed.addfile(entry, io.BytesIO(data))
    return zipped.getvalue(), gzip.compress(tarred.getvalue())


@pytest.mark.parametrize("name", ["mlt2019", "ctw"])
def test_an_archive_that_is_damaged_costs_what_it_holds(run, name):
    whole, packed = archives(FORMATS[name](good(4)))
    others = {"b/zz.zip": whole, "a/aa.zip": b"no archive", "a/ab.tar.gz": packed[: len(packed) // 2]}
    records, bad = run(others, format=name)
    assert len(records) + sum("not a readable archive" not in one for one in bad) == 4 and records
    assert any("aa.zip: not a readable archive" in one for one in bad)
    assert any("ab.tar.gz: not a readable archive" in one for one in bad)


def test_labels_that_break_off_cost_the_rest(run):
    files = FORMATS["ctw"](good(3))
    labels = {"train.jsonl": files.pop("train.jsonl")}
    _, packed = archives(labels | {"more": bytes(range(256)) * 999})
    records, bad = run(files | {"labels.tar.gz": packed[:-200]}, format="ctw")
    assert len(records) == 3 and len(bad) <= 1


def test_files_that_are_no_pdf_cost_themselves(run, monkeypatch):
    import pypdfium2

    opened = pypdfium2.PdfDocument

    def odd(data):
        if b"odd" in data:
            raise OverflowError("odd")
        return opened(data)

    monkeypatch.setattr(pypdfium2, "PdfDocument", odd)
    page = pdf((text([(20, 100, b"word")]), b""))
    records, bad = run({"a.pdf": b"odd", "b.pdf": page, "c.pdf": page[:300]}, source="pdf")
    assert [record.id for record in records] == ["b.pdf#1"] and len(bad) == 2


@pytest.mark.parametrize("code", [0x110000, 0x7FFFFFFF, 0xFFFFFFFF, 0xD800, 0xDC00])
def test_a_character_beyond_unicode_costs_its_word(run, code, monkeypatch):
    import pypdfium2.raw

    read = pypdfium2.raw.FPDFText_GetUnicode
    monkeypatch.setattr(
        pypdfium2.raw, "FPDFText_GetUnicode", lambda page, index: code if index == 1 else read(page, index)
    )
    (record,), bad = run({"a.pdf": pdf((text([(20, 100, b"lost here now")]), b""))}, source="pdf")
    assert [entry.text for entry in record.entries] == ["here", "now"] and not bad


def test_a_word_that_raises_costs_the_word(run, monkeypatch):
    from pypdfium2 import PdfTextPage

    read = PdfTextPage.get_charbox

    def fails(page, index, loose=False):
        if index == 1:
            raise RuntimeError("no box")
        return read(page, index, loose)

    monkeypatch.setattr(PdfTextPage, "get_charbox", fails)
    (record,), bad = run({"a.pdf": pdf((text([(20, 100, b"lost here now")]), b""))}, source="pdf")
    assert [entry.text for entry in record.entries] == ["here", "now"] and not bad


def test_no_record_at_all_says_why(run):
    with pytest.raises(DataError, match="no row became a record, 1 are bad: .*broken.pdf"):
        run({"broken.pdf": b"%PDF"}, source="pdf", max_bad=1.0)
