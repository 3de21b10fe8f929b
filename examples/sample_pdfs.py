"""Writes PDF files that the small checkpoints of this repository can read: `python -m examples.sample_pdfs FOLDER`.

The pages are those that the checkpoints were trained on, drawn anew: a picture, and its words as an invisible text
layer, as a scanner with text recognition writes them. For a real checkpoint take real documents.
"""

from __future__ import annotations

import argparse
import zlib
from pathlib import Path

from sparsemm.datasets.records import Record
from sparsemm.datasets.synthetic import PageStyle, draw_record

DPI = 144  # at which `read_pdfs` renders the pages again, so that every pixel is what it was


def pdf(record: Record) -> bytes:
    """Returns a PDF file of one page: the record's picture, and its entries as invisible text."""
    image, scale = record.image, 72 / DPI
    width, height = (side * scale for side in image.size)
    shown = [b"q %.3f 0 0 %.3f 0 0 cm /Page Do Q BT 3 Tr" % (width, height)]
    for entry in record.entries:
        left, top, right, bottom = (side * scale for side in entry.box)
        size = bottom - top
        stretch = 100 * (right - left) / (0.6 * size * len(entry.text))  # a letter of Courier is 0.6 wide
        text = entry.text.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)").encode("latin-1")
        baseline = height - bottom + 0.2 * size
        shown.append(b"/F %.3f Tf %.3f Tz 1 0 0 1 %.3f %.3f Tm (%s) Tj" % (size, stretch, left, baseline, text))
    content, pixels = b"\n".join([*shown, b"ET"]), zlib.compress(image.tobytes())
    picture = b"/Subtype /Image /Width %d /Height %d /ColorSpace /DeviceRGB /BitsPerComponent 8 /Filter /FlateDecode"
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 %.3f %.3f] /Contents 4 0 R /Resources "
        b"<< /Font << /F 6 0 R >> /XObject << /Page 5 0 R >> >> >>" % (width, height),
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content),
        b"<< %s /Length %d >>\nstream\n%s\nendstream" % (picture % image.size, len(pixels), pixels),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Courier /Encoding /WinAnsiEncoding >>",
    ]
    data, places = b"%PDF-1.7\n", []
    for number, one in enumerate(objects, 1):
        places.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, one)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    end = b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, len(data))
    return data + b"xref\n0 %d\n0000000000 65535 f \n%s" % (len(objects) + 1, table) + end


def main() -> None:
    """Writes the files."""
    parser = argparse.ArgumentParser(description="Writes PDF files that the small checkpoints can read.")
    parser.add_argument("folder", type=Path, help="where to write page-000.pdf, page-001.pdf, ...")
    parser.add_argument("--pages", type=int, default=32, help="how many (32)")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other pages (0)")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for i in range(args.pages):
        record = draw_record("calibration", args.seed, i, PageStyle())
        (args.folder / f"page-{i:03d}.pdf").write_bytes(pdf(record))
    print(f"{args.pages} PDF files in {args.folder}")


if __name__ == "__main__":
    main()
