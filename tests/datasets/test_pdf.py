"""Pages of PDF files: the ink of every word is in its box, whichever way the page is turned."""

from __future__ import annotations

import gzip
import io
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from sparsemm.datasets.pdf import read_pdfs
from sparsemm.datasets.records import read_about
from sparsemm.errors import DataError, ParamsError, SparseMMError
from tests.datasets.pdfs import pdf, text
from tests.datasets.samples import download_files, params

REAL = sorted(path for end in ("pdf", "pdf.gz") for path in Path("/usr/share/doc").glob(f"*/*.{end}"))


@pytest.fixture
def run(tmp_path):
    """`run({name: bytes}, **params)`: the records of a folder of PDF files."""
    return partial(download_files, tmp_path, source="pdf", path="documents", licence="own", max_bad=0.9)


def words(record):
    return [entry.text for entry in record.entries]


def assert_ink_is_in_the_boxes(record, least=0.95):
    """At least this share of the dark pixels is in a box, and every box has some ink; thin strokes are grey."""
    grey = np.asarray(record.image.convert("L"))
    dark = grey < 128
    inside = np.zeros_like(dark)
    for entry in record.entries:
        x0, y0, x1, y1 = entry.box
        where = slice(int(np.floor(y0)), int(np.ceil(y1))), slice(int(np.floor(x0)), int(np.ceil(x1)))
        assert grey[where].min() < 192, entry
        inside[where] = True
    assert (dark & inside).sum() >= least * dark.sum() > 0


PAGE = text([(20, 170, b"Alpha beta,"), (20, 150, b"gamma"), (200, 40, b"Delta")])


@pytest.mark.parametrize("rotate", [0, 90, 180, 270])
def test_words_and_boxes_on_turned_pages(run, rotate):
    (record,) = run({"a.pdf": pdf((PAGE, b"/Rotate %d" % rotate))})
    assert sorted(words(record)) == ["Alpha", "Delta", "beta,", "gamma"]
    assert record.image.size == ((600, 400) if rotate % 180 == 0 else (400, 600))
    assert_ink_is_in_the_boxes(record, 1.0)
    assert (record.id, record.licence) == ("a.pdf#1", "own") and record.source.startswith("documents@")
    (delta,) = [entry for entry in record.entries if entry.text == "Delta"]
    x, y = (sum(delta.box[i::2]) / 2 for i in (0, 1))  # at the lower right before it is turned
    wide, high = record.image.size
    right, low = {0: (1, 1), 90: (0, 1), 180: (0, 0), 270: (1, 0)}[rotate]
    assert (x > wide / 2) == bool(right) and (y > high / 2) == bool(low)


@pytest.mark.parametrize("dpi", [72, 100, 288])
def test_boxes_follow_the_resolution(run, dpi):
    (record,) = run({"a.pdf": pdf((PAGE, b""))}, dpi=dpi)
    assert record.image.size == (-(-300 * dpi // 72), -(-200 * dpi // 72))
    assert_ink_is_in_the_boxes(record, 0.97)


def test_a_wide_table_on_a_turned_page_is_read_as_it_is_seen(run):
    seen = [(20, 30, b"name"), (120, 30, b"amount"), (20, 60, b"oak"), (120, 60, b"12")]  # from the upper left
    content = text([(down, right, word) for right, down, word in seen], matrix=b"0 1 -1 0")
    (record,) = run({"a.pdf": pdf((content, b"/Rotate 90"))})
    assert words(record) == ["name", "amount", "oak", "12"]
    assert_ink_is_in_the_boxes(record, 1.0)
    for entry, (right, down, _) in zip(record.entries, seen, strict=True):
        assert abs(entry.box[0] - 2 * right) < 4 and abs(entry.box[3] - 2 * down) < 8  # 144 dpi: 2 pixels a point


def test_turned_text_and_cropped_pages(run):
    upwards = text([(50, 40, b"upwards now")], matrix=b"0 1 -1 0")
    cut = text([(20, 170, b"gone"), (110, 100, b"here")])
    turned, cropped = run({"a.pdf": pdf((upwards, b""), (cut, b"/CropBox [100 50 250 150]"))})
    assert words(turned) == ["upwards", "now"] and words(cropped) == ["here"]
    assert cropped.image.size == (300, 200)
    for record in (turned, cropped):
        assert_ink_is_in_the_boxes(record, 1.0)
    x0, y0, x1, y1 = turned.entries[0].box
    assert y1 - y0 > 2 * (x1 - x0) and turned.entries[0].box[1] > turned.entries[1].box[1]


def test_ligatures_are_letters(run):
    (record,) = run({"a.pdf": pdf((text([(20, 100, b"\\256nal \\257ow of\\256ce")]), b""))})
    assert words(record) == ["final", "flow", "office"[:2] + "fice"]
    assert_ink_is_in_the_boxes(record, 1.0)


def test_a_wide_gap_parts_words_and_columns(run):
    columns = text([(20, 150, b"left one"), (160, 150, b"right one"), (20, 130, b"left two"), (160, 130, b"right two")])
    squeezed = text([(20, 100, b"12.50"), (90, 100, b"7.25")])  # cells of a table, no blank between
    first, second = run({"a.pdf": pdf((columns, b""), (squeezed, b""))})
    assert sorted(words(first)) == ["left", "left", "one", "one", "right", "right", "two", "two"]
    assert words(second) == ["12.50", "7.25"]
    for record in (first, second):
        assert_ink_is_in_the_boxes(record, 1.0)


def test_several_scripts(run):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    from matplotlib import pyplot

    lines = ["Ελλάδα είναι", "Привет мир", "שלום", "Crème brûlée — 5 €", "Հայաստան"]
    for kind in (3, 42):  # Type 3 and TrueType
        with matplotlib.rc_context({"pdf.fonttype": kind, "font.family": "DejaVu Sans"}):
            figure = pyplot.figure(figsize=(4, 3))
            for number, line in enumerate(lines):
                figure.text(0.05, 0.85 - 0.17 * number, line, fontsize=14)
            buffer = io.BytesIO()
            figure.savefig(buffer, format="pdf", metadata={"CreationDate": None})
            pyplot.close(figure)
        (record,) = run({"a.pdf": buffer.getvalue()})
        found = words(record)
        for line in (lines[0], lines[1], lines[3], lines[4]):
            assert " ".join(line.split()) in " ".join(found)
        assert {"שלום", "שלום"[::-1]} & set(found)  # PDFium keeps or turns the order, as the fonts say
        assert_ink_is_in_the_boxes(record)


def test_pages_without_a_text_layer_are_left_out_and_counted(run, tmp_path, capsys):
    image = Image.new("RGB", (200, 100), "white")
    ImageDraw.Draw(image).text((10, 10), "scanned")
    buffer = io.BytesIO()
    image.save(buffer, format="PDF")
    files = {"scan.pdf": buffer.getvalue(), "text.pdf": pdf((PAGE, b""), (b"", b""), (PAGE, b""))}
    assert [r.id for r in run(files, max_bad=0.0)] == ["text.pdf#1", "text.pdf#3"]
    about = read_about(tmp_path / "artifacts" / "datasets" / "mine.parquet")
    assert len(about["empty"]) == 2 and "scan.pdf, page 1: no text layer" in about["empty"][0]
    assert "left out 2 with nothing to read, the first: " in capsys.readouterr().out


def test_a_font_without_a_meaning_is_no_text(run, tmp_path):
    font = (
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding << /Type /Encoding "
        b"/Differences [65 /g01 /g02 /g03] >> >>"
    )
    with pytest.raises(DataError, match="no row became a record, 1 have nothing to read"):
        run({"a.pdf": pdf((text([(20, 100, b"ABC BCA")]), b""), font=font)})


def test_files_that_cannot_be_read_are_bad_rows(run, tmp_path):
    good = pdf((PAGE, b""))
    files = {"a.pdf": good, "broken.pdf": good[:200], "empty.pdf": b"", "text.PDF": b"just text", "notes.txt": b"x"}
    assert len(run(files)) == 1
    bad = read_about(tmp_path / "artifacts" / "datasets" / "mine.parquet")["bad"]
    assert [one.split(":")[0] for one in bad] == [f"documents/{n}" for n in ("broken.pdf", "empty.pdf", "text.PDF")]
    with pytest.raises(DataError, match="max_bad"):
        run({}, max_bad=0.1)


def test_a_poster_is_drawn_smaller(run):
    (record,) = run({"a.pdf": pdf((PAGE, b"/MediaBox [0 0 14400 200]"))}, dpi=600)
    assert max(record.image.size) <= 4097


def test_rows_are_documents_and_a_path_may_be_one_file(run, tmp_path):
    files = {f"{name}.pdf": pdf((PAGE, b""), (PAGE, b"")) for name in "abc"}
    assert [r.id for r in run(files, rows=[1, 2])] == ["b.pdf#1", "b.pdf#2"]
    assert [r.id for r in run(files, samples=3)] == ["a.pdf#1", "a.pdf#2", "b.pdf#1"]
    assert [r.id for r in run({}, path="documents/c.pdf", samples=1)] == ["c.pdf#1"]
    with pytest.raises(DataError, match="no PDF file"):
        (tmp_path / "documents" / "sub").mkdir()
        (tmp_path / "documents" / "sub" / "x.txt").write_text("x")
        run({}, path="documents/sub")


def test_the_licence_must_be_said():
    with pytest.raises(ParamsError, match="mine.licence"):
        params(source="pdf", path="documents")


@pytest.mark.skipif(not REAL, reason="no PDF file under /usr/share/doc")
@pytest.mark.parametrize("path", REAL[:6], ids=lambda path: path.name)
def test_real_documentation(run, path):
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    records = run({path.name.removesuffix(".gz"): content}, samples=5)
    assert sum(len(record.entries) for record in records) > 50 * len(records) > 0
    for record in records[1:]:  # a title page may have thick rules
        assert_ink_is_in_the_boxes(record, 0.8)


def test_pdfs_become_records_without_params(tmp_path):
    good = pdf((PAGE, b""), (PAGE, b""), (b"", b""))
    for name, data in {"a.pdf": good, "b.pdf": good, "broken.pdf": good[:200]}.items():
        (tmp_path / name).write_bytes(data)
    with pytest.warns(UserWarning, match="left out: .*broken.pdf"):
        records = read_pdfs(tmp_path)
    assert [record.id for record in records] == ["a.pdf#1", "a.pdf#2", "b.pdf#1", "b.pdf#2"]
    assert words(records[0]) == ["Alpha", "beta,", "gamma", "Delta"]
    assert [record.id for record in read_pdfs(tmp_path, limit=1)] == ["a.pdf#1"]
    (one, _) = read_pdfs(tmp_path / "a.pdf", dpi=36)
    assert max(one.image.size) < max(records[0].image.size)
    (tmp_path / "scan").mkdir()
    (tmp_path / "scan" / "s.pdf").write_bytes(pdf((b"", b"")))
    with pytest.raises(DataError, match="no page with text"):
        read_pdfs(tmp_path / "scan")
    with pytest.raises(SparseMMError, match="nowhere"):
        read_pdfs(tmp_path / "nowhere")
