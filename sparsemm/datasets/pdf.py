"""Pages of born-digital PDF files: what the page looks like, and every word of its text layer with its box."""

from __future__ import annotations

import ctypes
import unicodedata
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from sparsemm.datasets.images import Box
from sparsemm.datasets.records import Entry, Record
from sparsemm.errors import DataError, EmptyRecord
from sparsemm.fetch import Place

LONGEST = 4096  # pixels of a page's longer side, at most; posters are drawn at fewer dots an inch
FINE = 64  # parts of a pixel that boxes are measured in
HYPHENS = ("\x02", "\ufffe")  # what PDFium gives for a hyphen that ends a line


@dataclass(frozen=True)
class Page:
    """One page of an open document; a file that cannot be opened is one page with a `reason`."""

    where: str
    name: str
    index: int
    document: Any
    reason: str = ""


def rows(place: Place, first: int, stop: int | None) -> Generator[Page, None, None]:
    """The pages of the PDF files [first, stop), files by name; a page can be read until the next is asked for.

    Raises:
        DataError: if there is no PDF file, or pypdfium2 is not installed.
        FetchError: if a file cannot be read.
    """
    try:
        import pypdfium2
    except ImportError as error:
        hint = 'pip install "sparsemm[pdf]"'
        raise DataError("pypdfium2 is not installed", where=place.address, hint=hint) from error
    names = [name for name in place.files if name.lower().endswith(".pdf")]
    if not names:
        raise DataError("no PDF file", where=place.address)
    for name in names[first:stop]:
        where = f"{place.address}/{name}" if name != place.address.rpartition("/")[2] else place.address
        with place.files[name].open() as handle:
            data = handle.read()
        try:
            document = pypdfium2.PdfDocument(data)
        except pypdfium2.PdfiumError as error:
            yield Page(where, name, 0, None, f"cannot be opened: {error}")  # damaged, or behind a password
            continue
        try:
            for index in range(len(document)):
                yield Page(f"{where}, page {index + 1}", name, index, document)
        finally:
            document.close()


def record(row: Page, source: str, licence: str, dpi: int) -> Record:
    """The page at `dpi` with its words in the order of the text layer.

    Raises:
        DataError: if the file or the page cannot be read.
        EmptyRecord: if the page has no text layer, or one whose characters mostly cannot be told (fonts without a
            mapping to Unicode).
    """
    if row.document is None:
        raise DataError(row.reason, where=row.where)
    import pypdfium2

    try:
        page = row.document[row.index]
        try:
            scale = min(dpi / 72, LONGEST / max(page.get_size()))  # a PDF's unit is 1/72 inch
            image = page.render(scale=scale).to_pil().convert("RGB")
            words, unknown = _words(page, image.size)
        finally:
            page.close()
    except (pypdfium2.PdfiumError, ValueError, ZeroDivisionError, MemoryError) as error:
        raise DataError(f"the page cannot be drawn: {error}", where=row.where) from error
    if unknown > len(words):
        raise EmptyRecord("most words of the text layer cannot be told", where=row.where)
    if not words:
        raise EmptyRecord("no text layer", where=row.where)
    return Record(f"{row.name}#{row.index + 1}", image, tuple(words), source, licence)


def _words(page: Any, size: tuple[int, int]) -> tuple[list[Entry], int]:
    """The words on a page drawn at `size`, and how many more could not be told.

    A word ends at a blank, at the end of a line (a hyphen there is part of it), and where the next character stands
    further away than it is large. Its box is around the ink of its characters.
    """
    import pypdfium2.raw as pdfium

    layer = page.get_textpage()
    words: list[Entry] = []
    unknown = 0
    text, told = "", True
    boxes: list[Box] = []
    last: Box | None = None

    def end() -> None:
        nonlocal text, boxes, told, last, unknown
        if text:
            box = _on_page(_around(boxes), size) if boxes else None
            if told and box and text.strip():
                words.append(Entry(text, box, "word"))
            unknown += not told
        text, boxes, told, last = "", [], True, None

    try:
        high = ""  # the first half of a character beyond U+FFFF
        for index in range(layer.count_chars()):
            code = pdfium.FPDFText_GetUnicode(layer, index)
            if 0xD800 <= code < 0xDC00:
                high = chr(code)
                continue
            character = chr(code)
            if 0xDC00 <= code < 0xE000:
                character = (high + character).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            high = ""
            hyphen = character in HYPHENS
            if not hyphen and (character.isspace() or unicodedata.category(character) == "Cc" and code):
                end()
                continue
            frame = _device(page, size, layer.get_charbox(index, loose=True))
            if last and max(_gaps(last, frame)) > max(frame[2] - frame[0], frame[3] - frame[1]):
                end()
            last = frame
            ink = _device(page, size, layer.get_charbox(index))
            if ink[0] < ink[2] and ink[1] < ink[3]:
                boxes.append(ink)
            if hyphen:
                text += "-"
                end()
                continue
            private = unicodedata.category(character) in ("Co", "Cn") or character == "\ufffd"
            if private or pdfium.FPDFText_HasUnicodeMapError(layer, index) == 1:
                told = False
            text += _plain(character)
        end()
    finally:
        layer.close()
    return words, unknown


def _plain(character: str) -> str:
    """Ligatures and positional forms (fi, Arabic) as the letters they stand for; soft marks as nothing."""
    if "\ufb00" <= character <= "\ufdff" or "\ufe70" <= character <= "\ufefe":
        return unicodedata.normalize("NFKC", character)
    joiner = character in "\u200c\u200d"  # part of how some scripts are written
    return "" if unicodedata.category(character) == "Cf" and not joiner else character


def _device(page: Any, size: tuple[int, int], box: tuple[float, float, float, float]) -> Box:
    """A box of the page's own space (points, y upwards, before rotation) in pixels of the drawn page."""
    import pypdfium2.raw as pdfium

    x, y = ctypes.c_int(), ctypes.c_int()
    found = []
    for px, py in ((box[0], box[1]), (box[2], box[3])):
        wide, high = size[0] * FINE, size[1] * FINE
        pdfium.FPDF_PageToDevice(page, 0, 0, wide, high, 0, px, py, ctypes.byref(x), ctypes.byref(y))
        found.append((x.value / FINE, y.value / FINE))
    (ax, ay), (bx, by) = found
    return min(ax, bx), min(ay, by), max(ax, bx), max(ay, by)


def _around(boxes: list[Box]) -> Box:
    lows = [min(box[i] for box in boxes) for i in (0, 1)]
    highs = [max(box[i] for box in boxes) for i in (2, 3)]
    return lows[0], lows[1], highs[0], highs[1]


def _on_page(box: Box, size: tuple[int, int]) -> Box | None:
    """The visible part of a box; None if the page's crop leaves nothing of it."""
    x0, y0, x1, y1 = max(box[0], 0.0), max(box[1], 0.0), min(box[2], float(size[0])), min(box[3], float(size[1]))
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def _gaps(one: Box, other: Box) -> tuple[float, float]:
    """How far two boxes are apart, across and down; negative where they overlap."""
    return max(one[0], other[0]) - min(one[2], other[2]), max(one[1], other[1]) - min(one[3], other[3])
