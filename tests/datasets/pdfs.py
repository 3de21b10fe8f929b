"""Small PDF files, written byte by byte."""

from __future__ import annotations

from collections.abc import Sequence

STANDARD = b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /StandardEncoding >>"


def text(words: Sequence[tuple[float, float, bytes]], size: float = 12, matrix: bytes = b"1 0 0 1") -> bytes:
    """A content stream with words at (x, y) points from the lower left."""
    shown = b"".join(b"%s %.2f %.2f Tm (%s) Tj " % (matrix, x, y, word) for x, y, word in words)
    return b"BT /F1 %.2f Tf %sET" % (size, shown)


def pdf(*pages: tuple[bytes, bytes], font: bytes = STANDARD) -> bytes:
    """A PDF of (content stream, more entries of the page: /MediaBox, /Rotate, ...)."""
    kids = b" ".join(b"%d 0 R" % (4 + 2 * i) for i in range(len(pages)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [%s] /Count %d /MediaBox [0 0 300 200] >>" % (kids, len(pages)),
        font,
    ]
    for i, (content, more) in enumerate(pages):
        resources = b"/Resources << /Font << /F1 3 0 R >> >>"
        objects.append(b"<< /Type /Page /Parent 2 0 R /Contents %d 0 R %s %s >>" % (5 + 2 * i, resources, more))
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content))
    data, places = b"%PDF-1.7\n", []
    for number, one in enumerate(objects, 1):
        places.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, one)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    start = len(data)
    data += b"xref\n0 %d\n0000000000 65535 f \n%s" % (len(places) + 1, table)
    return data + b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(places) + 1, start)
