"""Small PDF files, written byte by byte."""

from __future__ import annotations

from collections.abc import Sequence

STANDARD = b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /StandardEncoding >>"


def text(words: Sequence[tuple[float, float, bytes]], size: float = 12, matrix: bytes = b"1 0 0 1") -> bytes:
    """A content stream with words at (x, y) points from the lower left."""
    shown = b"".join(b"%s %.2f %.2f Tm (%s) Tj " % (matrix, x, y, word) for x, y, word in words)
    return b"BT /F1 %.2f Tf %sET" % (size, shown)


def stream(content: bytes, more: bytes = b"") -> bytes:
    """A stream object with more entries in its dictionary."""
    return b"<< /Length %d %s >>\nstream\n%s\nendstream" % (len(content), more, content)


def pdf(
    *pages: tuple[bytes, bytes],
    font: bytes = STANDARD,
    catalog: bytes = b"",
    resources: bytes = b"",
    objects: Sequence[bytes] = (),
) -> bytes:
    """A PDF of (content stream, more entries of the page: /MediaBox, /Rotate, ...).

    Args:
        pages: of the file.
        font: F1 of every page.
        catalog: more entries of the catalog.
        resources: more entries of every page's resources.
        objects: that these entries name; the first has the number 100.
    """
    kids = b" ".join(b"%d 0 R" % (4 + 2 * i) for i in range(len(pages)))
    numbered = [
        b"<< /Type /Catalog /Pages 2 0 R %s >>" % catalog,
        b"<< /Type /Pages /Kids [%s] /Count %d /MediaBox [0 0 300 200] >>" % (kids, len(pages)),
        font,
    ]
    for i, (content, more) in enumerate(pages):
        named = b"/Resources << /Font << /F1 3 0 R >> %s >>" % resources
        numbered.append(b"<< /Type /Page /Parent 2 0 R /Contents %d 0 R %s %s >>" % (5 + 2 * i, named, more))
        numbered.append(stream(content))
    if objects:
        numbered += [b"null"] * (99 - len(numbered)) + list(objects)
    data, places = b"%PDF-1.7\n", []
    for number, one in enumerate(numbered, 1):
        places.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, one)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    start = len(data)
    data += b"xref\n0 %d\n0000000000 65535 f \n%s" % (len(places) + 1, table)
    return data + b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(places) + 1, start)
