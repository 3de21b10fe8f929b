"""A word of a PDF is an entry if it is seen; seen text is an entry, or its page says that it is not."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from sparsemm.datasets.records import read_about
from tests.datasets.pdfs import pdf, stream, text
from tests.datasets.samples import MINE, download_files

SEEN = text([(20, 170, b"Alpha beta")])
HIDDEN_LAYER = {
    "catalog": b"/OCProperties << /OCGs [100 0 R] /D << /OFF [100 0 R] /Order [100 0 R] >> >>",
    "resources": b"/Properties << /L 100 0 R >>",
    "objects": [b"<< /Type /OCG /Name (notes) >>"],
}
EMPTY_FONT = (
    b"<< /Type /Font /Subtype /Type3 /FontBBox [0 0 750 750] /FontMatrix [0.001 0 0 0.001 0 0] "
    b"/CharProcs << /a 102 0 R /b 102 0 R >> "
    b"/Encoding << /Type /Encoding /Differences [97 /a /b] >> /FirstChar 97 /LastChar 98 /Widths [600 600] >>"
)


@pytest.fixture
def run(tmp_path):
    """`run(data)`: the words of each page, what the summary says of the file, and the records."""

    def run(data, **given):
        (tmp_path / "a.pdf").write_bytes(data)
        options = {"source": "pdf", "path": "a.pdf", "licence": "own"}
        records = download_files(tmp_path, {}, **options | given)
        return [[entry.text for entry in record.entries] for record in records], read_about(tmp_path / MINE), records

    return run


UNSEEN = {
    "hidden layer": (b"/OC /L BDC " + text([(20, 100, b"hidden")]) + b" EMC", HIDDEN_LAYER),
    "hidden layer below seen text": (b"/OC /L BDC " + text([(20, 170, b"Gamma delta")]) + b" EMC", HIDDEN_LAYER),
    "invisible": (text([(20, 100, b"hidden")]).replace(b"BT", b"BT 3 Tr") + b" BT 0 Tr ET", {}),
    "invisible below seen text": (text([(20, 170, b"Gamma delta")]).replace(b"BT", b"BT 3 Tr") + b" BT 0 Tr ET", {}),
    "white on white": (b"1 g " + text([(20, 100, b"hidden")]) + b" 0 g", {}),
    "black on black": (b"0 g 10 90 200 30 re f " + text([(20, 100, b"hidden")]), {}),
    "transparent": (
        b"/E gs " + text([(20, 100, b"hidden")]) + b" /O gs",
        {"resources": b"/ExtGState << /E << /ca 0 >> /O << /ca 1 >> >>"},
    ),
    "clipped": (b"q 0 0 10 10 re W n " + text([(20, 100, b"hidden")]) + b" Q", {}),
    "half clipped": (b"q 0 0 300 102 re W n " + text([(20, 100, b"hidden")]) + b" Q", {}),
    "covered": (text([(20, 100, b"hidden")]) + b" 0.5 g 10 90 200 30 re f 0 g", {}),
    "overprinted in white": (text([(20, 100, b"hidden")]) + b" 1 g " + text([(20, 100, b"hidden")]) + b" 0 g", {}),
    "in a group": (
        b"/X Do",
        {
            "resources": b"/XObject << /X 100 0 R >>",
            "objects": [
                stream(
                    b"1 g " + text([(20, 100, b"hidden")]),
                    b"/Type /XObject /Subtype /Form /BBox [0 0 300 200] /Resources << /Font << /F1 3 0 R >> >>",
                )
            ],
        },
    ),
    "in a font that cannot be drawn": (
        b"/X Do",
        {
            "resources": b"/XObject << /X 101 0 R >>",
            "objects": [
                EMPTY_FONT,
                stream(
                    b"BT /F2 12 Tf 20 100 Td (abab) Tj ET",
                    b"/Type /XObject /Subtype /Form /BBox [0 0 300 200] /Resources << /Font << /F2 100 0 R >> >>",
                ),
                stream(b"600 0 0 0 600 700 d1"),
            ],
        },
    ),
    "too light to see": (b"0.98 g " + text([(20, 100, b"hidden")]) + b" 0 g", {}),
}


@pytest.mark.parametrize("name", UNSEEN)
def test_a_word_that_is_not_seen_is_no_entry(run, name):
    content, options = UNSEEN[name]
    (words,), about, _ = run(pdf((content + b" " + SEEN, b""), **options))
    assert words == ["Alpha", "beta"] and not about["partial"]


def test_a_page_of_which_nothing_is_seen_is_counted_as_empty(run):
    (words,), about, _ = run(pdf((UNSEEN["invisible"][0], b""), (SEEN, b"")))
    assert words == ["Alpha", "beta"]
    assert about["empty"] == ["a.pdf, page 1: of its words, 1 are invisible and 0 have unknown characters"]


KEPT = {
    "drawn twice to be bold": SEEN + b" " + text([(20.4, 170, b"Alpha beta")]),
    "drawn twice at one place": SEEN + b" " + SEEN,
    "close lines": SEEN + b" " + text([(20, 163, b"Alpha beta")]),
    "outlined": SEEN.replace(b"BT", b"BT 1 Tr"),
    "light on dark": b"0.2 g 0 150 300 50 re f 0.9 g " + SEEN,
    "colour on colour": b"0 0.6 0 rg 0 150 300 50 re f 1 0.3 0.3 rg " + SEEN,
    "grey": b"0.8 g " + SEEN,
    "letter by letter": b" ".join(
        text([(20 + x, 170, b"%c" % c)]) for x, c in zip((0, 8, 10.7, 17.4, 24.1), b"Alpha", strict=True)
    ),
    "struck through": SEEN + b" 15 173 80 1 re f",
    "below a highlight": b"1 1 0 rg 15 165 80 15 re f 0 g " + SEEN,
}


@pytest.mark.parametrize("name", KEPT)
def test_a_word_that_is_seen_is_an_entry(run, name):
    (words,), about, _ = run(pdf((KEPT[name], b"")))
    assert {"Alpha"} <= set(words) <= {"Alpha", "beta"} and not about["partial"]


def annotation(kind: bytes, content: bytes, more: bytes = b"", flags: int = 4) -> list[bytes]:
    """The objects 100 and 101: an annotation and how it looks."""
    look = b"/Type /XObject /Subtype /Form /BBox [0 0 200 30] /Resources << /Font << /F1 3 0 R >> >>"
    return [
        b"<< /Type /Annot /Subtype /%s /Rect [20 60 220 90] /F %d /AP << /N 101 0 R >> %s >>" % (kind, flags, more),
        stream(content, look),
    ]


@pytest.mark.parametrize(
    ("kind", "more"), [(b"FreeText", b"/Contents (x)"), (b"Stamp", b""), (b"Widget", b"/FT /Tx /T (name) /V (x)")]
)
def test_text_that_an_annotation_draws_is_an_entry(run, kind, more):
    objects = annotation(kind, text([(5, 10, b"Filled in")]), more)
    (words,), about, (record,) = run(pdf((SEEN, b"/Annots [100 0 R]"), objects=objects))
    assert words == ["Alpha", "beta", "Filled", "in"] and not about["partial"]
    assert record.image.size == (600, 400)
    grey = np.asarray(record.image.convert("L"))
    for entry in record.entries:
        x0, y0, x1, y1 = map(int, entry.box)
        assert grey[y0:y1, x0:x1].min() < 128
    covered = grey.copy()
    for entry in record.entries:
        x0, y0, x1, y1 = entry.box
        covered[int(y0) : int(-(-y1 // 1)), int(x0) : int(-(-x1 // 1))] = 255
    assert covered.min() > 128  # no text beside the entries


@pytest.mark.parametrize("flags", [2, 32], ids=["hidden", "no view"])
def test_text_of_a_hidden_annotation_is_neither_seen_nor_an_entry(run, flags):
    objects = annotation(b"FreeText", text([(5, 10, b"Filled in")]), flags=flags)
    (words,), _, (record,) = run(pdf((SEEN, b"/Annots [100 0 R]"), objects=objects))
    assert words == ["Alpha", "beta"] and record.image.size == (600, 400)
    assert np.asarray(record.image)[150:].min() == 255


def test_readable_words_of_a_page_with_mapping_errors_are_kept(run):
    font = (
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding << /Type /Encoding "
        b"/BaseEncoding /WinAnsiEncoding /Differences [88 /g01 /g02 /g03] >> >>"
    )
    placed = [(20.0, 30.0 + 20 * i, b"XYZ" if i else b"three plain words") for i in range(7)]
    (words,), about, _ = run(pdf((text(placed), b""), font=font))
    assert words == ["three", "plain", "words"]
    assert all("unknown characters" in one for one in about["partial"])


def scan(words: list[tuple[int, int, bytes]]) -> tuple[bytes, dict[str, object]]:
    """A page that is a picture with ink at (x, y) points from the lower left, and nothing else."""
    image = Image.new("L", (300, 200), 230)
    for x, y, _ in words:
        ImageDraw.Draw(image).rectangle((x, 200 - y - 8, x + 30, 200 - y), fill=30)
    more = b"/Type /XObject /Subtype /Image /Width 300 /Height 200 /ColorSpace /DeviceGray /BitsPerComponent 8"
    return b"q 300 0 0 200 0 0 cm /P Do Q ", {
        "resources": b"/XObject << /P 100 0 R >>",
        "objects": [stream(image.tobytes(), more)],
    }


def test_invisible_text_over_the_ink_of_a_scan_is_an_entry(run):
    content, options = scan([(20, 100, b"scanned")])
    layer = text([(20, 100, b"scanned"), (150, 40, b"nothing")]).replace(b"BT", b"BT 3 Tr")
    (words,), _, _ = run(pdf((content + layer, b""), **options))
    assert words == ["scanned"]
