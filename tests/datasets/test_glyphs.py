"""Fonts that map their codes to no character are read where the codes are what is seen, and only there."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import ImageFont

import sparsemm.datasets
from sparsemm.datasets.records import read_about
from sparsemm.errors import DataError
from tests.datasets.pdfs import pdf, stream, text
from tests.datasets.samples import MINE, download_files

LINES = ("Printed before Unicode", "by 1985 machines (old).")
PLACED = [(20.0, 150.0 - 40 * number, line.encode()) for number, line in enumerate(LINES)]


def bitmap_font(shift: int) -> dict[str, object]:
    """F1 as old TeX files have it: pictures of glyphs under names that say nothing; code + `shift` is what is drawn."""
    path = Path(sparsemm.datasets.__file__).parent / "fonts" / "DejaVuSansMono.ttf"
    font = ImageFont.truetype(str(path), 64, layout_engine=ImageFont.Layout.BASIC)
    codes = sorted({ord(character) for line in LINES for character in line} - {32})
    objects = []
    for code in codes:
        mask, (left, top) = font.getmask2(chr(code + shift), mode="L", anchor="ls")
        width, height = mask.size
        drawn = b"%d 0 0 %d %d %d cm" % (width, height, left, -top - height)
        image = b"BI /W %d /H %d /IM true /BPC 1 /D [0 1] ID " % (width, height)
        rows = [[mask.getpixel((x, y)) < 128 for x in range(width)] for y in range(height)]
        packed = b"".join(
            bytes(sum(row[x + i] << 7 - i for i in range(8) if x + i < width) for x in range(0, width, 8))
            for row in rows
        )
        objects.append(
            stream(b"40 0 %d %d %d %d d1 q %s %s%s EI Q" % (left, -top - height, width, -top, drawn, image, packed))
        )
    procedures = b" ".join(b"/g%d %d 0 R" % (code, 100 + i) for i, code in enumerate(codes))
    names = b" ".join(b"%d /g%d" % (code, code) for code in codes)
    widths = b" ".join(b"40" if code in codes else b"20" for code in range(32, 128))
    return {
        "font": b"<< /Type /Font /Subtype /Type3 /FontBBox [0 -20 50 60] /FontMatrix [0.0156 0 0 0.0156 0 0] "
        b"/CharProcs << %s >> /Encoding << /Type /Encoding /Differences [%s] >> "
        b"/FirstChar 32 /LastChar 127 /Widths [%s] >>" % (procedures, names, widths),
        "objects": objects,
    }


@pytest.fixture
def run(tmp_path):
    """`run(data)`: the words of the pages, and what the summary says of the file."""

    def run(data):
        (tmp_path / "a.pdf").write_bytes(data)
        records = download_files(tmp_path, {}, source="pdf", path="a.pdf", licence="own")
        return [entry.text for record in records for entry in record.entries], read_about(tmp_path / MINE)

    return run


def test_codes_that_are_what_is_seen_are_read(run):
    words, about = run(pdf((text(PLACED, size=14), b""), **bitmap_font(0)))
    assert words == " ".join(LINES).split() and not about["partial"]


@pytest.mark.parametrize("shift", [1, 3, -1])
def test_codes_that_are_something_else_are_not(run, shift):
    plain = pdf((text(PLACED[:1]), b""))
    shifted = pdf((text(PLACED, size=14), b""), **bitmap_font(shift))
    words, about = run(plain)
    assert words == LINES[0].split() and not about["empty"]
    with pytest.raises(DataError, match="no row became a record, 1 have nothing to read"):
        run(shifted)
