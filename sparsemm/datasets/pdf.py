"""Reads pages of born-digital PDF files: their picture, and every visible word of the text layer with its box."""

from __future__ import annotations

import ctypes
import unicodedata
import warnings
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sparsemm.datasets.data_errors import data_errors
from sparsemm.datasets.glyphs import recognized
from sparsemm.datasets.images import Box
from sparsemm.datasets.ink import Ink, address, pixels
from sparsemm.datasets.records import Entry, Record, Row, Rows
from sparsemm.errors import DataError, EmptyRecord
from sparsemm.fetch import Place, open_local

LONGEST = 4096  # most pixels of a page's longer side; larger pages are drawn at a lower resolution
INVISIBLE = 3  # the text render mode that paints nothing
SPAN = 0.4  # least share of a word's box that its ink must span, in both directions,
BORDER = 2  # not counting the pixels that a box touches at its edges
CONTRAST = 48  # least contrast of a scanned word and its paper, of 256 levels
FINE = 64  # boxes are measured in these parts of a pixel
HYPHENS = ("\x02", "\ufffe")  # PDFium's characters for a hyphen at the end of a line


@dataclass(frozen=True)
class Page:
    """One page of an open document."""

    where: str
    name: str
    index: int
    document: Any


@dataclass
class Character:
    """One character of a page's text layer."""

    text: str  # its letters: one, several (a ligature), or none (a soft mark)
    text_object: int = 0  # the address of the object that draws it
    ink: Box | None = None  # box around its glyph, in pixels; None if it has none
    frame: Box | None = None  # box of its cell, as high as the font; None if it could not be read
    is_known: bool = True  # whether it is known which character it is
    is_blank: bool = False  # whether it separates words and is part of none
    is_hyphen: bool = False  # whether it is a hyphen at the end of a line
    mode: int = 0  # PDFium's text render mode
    font: int = 0  # the address of its font if that has no mapping to Unicode, so that `text` is only its code; else 0


def rows(place: Place, first: int, stop: int | None, dpi: int) -> Rows:
    """Yields the pages of the PDF files [first, stop), files by name; a page can be read until the next is requested.

    A DataError takes the place of a file that cannot be opened. Raises DataError if there is no PDF file, or pypdfium2
    is not installed, and FetchError if a file cannot be downloaded.
    """
    try:
        import pypdfium2
    except ImportError as error:
        hint = "install the pdf extra: `pip install '.[pdf]'` in a clone of SparseMM"
        raise DataError("pypdfium2 is not installed", where=place.address, hint=hint) from error
    names = [name for name in place.files if name.lower().endswith(".pdf")]
    if not names:
        raise DataError("no PDF file", where=place.address)
    for name in names[first:stop]:
        where = f"{place.address}/{name}" if name != place.address.rpartition("/")[2] else place.address
        try:
            with data_errors(where, "cannot be opened"):  # damaged, or protected by a password
                with place.files[name].open() as handle:
                    document = pypdfium2.PdfDocument(handle.read())
                count = len(document)
        except DataError as error:
            yield error
            continue
        try:
            for index in range(count):
                page = Page(f"{where}, page {index + 1}", name, index, document)
                yield Row(page.where, partial(_record, page, dpi))
        finally:
            document.close()


def _record(row: Page, dpi: int, source: str, licence: str) -> Record:
    """Renders a page at `dpi`, and reads its visible words in the order of the text layer.

    Annotations (notes, filled fields) are part of the page. Words whose characters are unknown (fonts without a mapping
    to Unicode) are left out, and a remark counts them. Raises DataError if the page cannot be read, and EmptyRecord if
    the page has no visible words with known characters.
    """
    with data_errors(row.where, "the page cannot be drawn"), _opened(row) as page:
        scale = min(dpi / 72, LONGEST / max(page.get_size()))  # a PDF's unit is 1/72 inch
        ink = Ink(page, scale)
        words, unknown, invisible = _words(page, ink)
    if not words:
        what = f"of its words, {invisible} are invisible and {unknown} have unknown characters"
        raise EmptyRecord(what if unknown + invisible else "no text layer", where=row.where)
    remarks = (f"{row.where}: {unknown} visible words have unknown characters",) if unknown else ()
    return Record(f"{row.name}#{row.index + 1}", ink.image, tuple(words), source, licence, remarks)


def read_pdfs(path: str | Path, dpi: int = 144, limit: int | None = None) -> list[Record]:
    """Returns the pages of a PDF file, or of those in a folder, as records for `sparsemm.score_heads`.

    Pages without a text layer are left out; so are pages and files that cannot be read, with a warning for each.

    Args:
        path: file or folder.
        dpi: resolution of the page images, in pixels per inch.
        limit: largest number of pages.

    Raises:
        DataError: if there is no PDF file, none of its pages can be read, or pypdfium2 is not installed.
        FetchError: if the path does not exist.
    """
    place = open_local(str(path), Path("."))
    records: list[Record] = []
    with closing(rows(place, 0, None, dpi)) as pages:
        for page in pages:
            if limit is not None and len(records) >= limit:
                break
            try:
                if isinstance(page, DataError):
                    raise page
                records.append(page.read(place.address, "not stated").validate())
            except EmptyRecord:
                continue
            except DataError as error:
                warnings.warn(f"left out: {error}", stacklevel=2)
    if not records:
        raise DataError("no page with text that can be read", where=place.address, hint="scans need OCR first")
    return records


@contextmanager
def _opened(row: Page) -> Iterator[Any]:
    """Opens a page with its annotations made part of its content, so that their text is in the text layer."""
    import pypdfium2.raw as pdfium

    page = row.document[row.index]
    try:
        annotations = pdfium.FPDFPage_GetAnnotCount(page)
        if annotations > 0:
            for index in reversed(range(annotations)):
                if not _is_shown(page, index):
                    pdfium.FPDFPage_RemoveAnnot(page, index)
            box = page.get_bbox()
            page.set_mediabox(*box)  # PDFium's flattening ignores the boxes that a page inherits
            page.set_cropbox(*box)
            pdfium.FPDFPage_Flatten(page, pdfium.FLAT_NORMALDISPLAY)
            page.close()
            page = row.document[row.index]
        yield page
    finally:
        page.close()


def _is_shown(page: Any, index: int) -> bool:
    """Returns whether an annotation is drawn on a screen; one that belongs to a layer counts as hidden."""
    import pypdfium2.raw as pdfium

    annotation = pdfium.FPDFPage_GetAnnot(page, index)
    if not annotation:
        return False
    try:
        hidden = pdfium.FPDF_ANNOT_FLAG_HIDDEN | pdfium.FPDF_ANNOT_FLAG_NOVIEW | pdfium.FPDF_ANNOT_FLAG_INVISIBLE
        return not pdfium.FPDFAnnot_GetFlags(annotation) & hidden and not pdfium.FPDFAnnot_HasKey(annotation, b"OC")
    finally:
        pdfium.FPDFPage_CloseAnnot(annotation)


def _words(page: Any, ink: Ink) -> tuple[list[Entry], int, int]:
    """Returns the visible words, the number of visible words with unknown characters, and that of invisible words.

    A word ends at a blank, at the end of a line (with a hyphen there), and where the distance to the next character
    exceeds that character's size. Its box is around the ink of its characters.
    """
    characters = _characters(page, ink.image.size)
    boxes: dict[int, list[Box]] = {}
    for character in characters:
        if character.ink:
            boxes.setdefault(character.text_object, []).append(character.ink)
    ink.find(boxes)
    _recognize(characters, ink)
    pictures = _pictures(page, ink.image.size) if any(c.mode == INVISIBLE for c in characters) else []
    words: list[Entry] = []
    unknown = invisible = 0
    for word in _split(characters):
        text, box = "".join(c.text for c in word), _around([c.ink for c in word if c.ink], ink.image.size)
        is_known = all(c.is_known for c in word)
        if is_known and not text.strip():
            continue
        if box is None or not (_is_visible(word, box, ink) or _is_scanned(word, box, ink, pictures)):
            invisible += 1
        elif is_known:
            words.append(Entry(text, box, "word"))
        else:
            unknown += 1
    return words, unknown, invisible


def _characters(page: Any, size: tuple[int, int]) -> list[Character]:
    """Returns the characters of the text layer; one that cannot be read is an unknown one."""
    layer = page.get_textpage()
    try:
        characters: list[Character] = []
        high = ""  # the first half of a character beyond U+FFFF
        for index in range(layer.count_chars()):
            try:
                character, high = _character(page, layer, index, size, high)
            except Exception:  # an error in a character affects its word alone
                character, high = Character("\ufffd", is_known=False), ""
            if character:
                characters.append(character)
        return characters
    finally:
        layer.close()


def _character(page: Any, layer: Any, index: int, size: tuple[int, int], high: str) -> tuple[Character | None, str]:
    """Returns (character, ""), or (None, the half of a character beyond U+FFFF that stands here)."""
    import pypdfium2.raw as pdfium

    code = pdfium.FPDFText_GetUnicode(layer, index)
    if 0xD800 <= code < 0xDC00 and not high:
        return None, chr(code)
    character = (high + chr(code)).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if len(character) > 1:
        raise ValueError("half a character")
    category = unicodedata.category(character)
    is_mapped = pdfium.FPDFText_HasUnicodeMapError(layer, index) != 1
    is_hyphen = is_mapped and character in HYPHENS
    box = _device(page, size, layer.get_charbox(index))
    ink = box if box[0] < box[2] and box[1] < box[3] else None
    if not is_hyphen and (character.isspace() or category == "Cc" and code) and (is_mapped or ink is None):
        return Character("", is_blank=True), ""
    text_object = pdfium.FPDFText_GetTextObject(layer, index)
    return Character(
        "-" if is_hyphen else _letters(character),
        address(text_object),
        ink,
        _device(page, size, layer.get_charbox(index, loose=True)),
        is_mapped and (is_hyphen or category not in ("Co", "Cn") and character != "\ufffd"),
        is_hyphen=is_hyphen,
        mode=pdfium.FPDFTextObj_GetTextRenderMode(text_object) if text_object else 0,
        font=0 if is_mapped or not text_object else address(pdfium.FPDFTextObj_GetFont(text_object)),
    ), ""


def _recognize(characters: list[Character], ink: Ink) -> None:
    """Marks the characters as known that look like their codes, as in fonts that were made before Unicode."""
    fonts: dict[int, dict[str, Any]] = {}
    for c in characters:
        if c.font and c.ink and c.text.isspace():  # a blank, unless something is drawn there
            c.is_blank = not ink.of(c.text_object, c.ink).any()
        if c.font and c.ink and len(c.text) == 1:
            fonts.setdefault(c.font, {}).setdefault(c.text, ink.contrast(c.text_object, c.ink))
    known = {font: recognized(glyphs) for font, glyphs in fonts.items()}
    for c in characters:
        c.is_known = c.is_known or c.text in known.get(c.font, ())


def _split(characters: Iterable[Character]) -> Iterator[list[Character]]:
    """Yields the characters of each word."""
    word: list[Character] = []
    last: Box | None = None
    for c in characters:
        if last and c.frame and max(_gaps(last, c.frame)) > max(c.frame[2] - c.frame[0], c.frame[3] - c.frame[1]):
            yield word
            word, last = [], None
        if not c.is_blank:
            word.append(c)
            last = c.frame or last
        if word and (c.is_blank or c.is_hyphen):
            yield word
            word, last = [], None
    if word:
        yield word


def _is_visible(word: list[Character], box: Box, ink: Ink) -> bool:
    """Returns whether every letter and digit (else the first character) has ink, and the ink spans most of the box."""
    inked = [c for c in word if c.ink]
    needed = [c for c in inked if c.text.isalnum()] or inked[:1]
    if not all(ink.of(c.text_object, c.ink).any() for c in needed if c.ink):
        return False
    rows, columns = pixels(box, (ink.image.height, ink.image.width))
    mask = np.zeros((rows.stop - rows.start, columns.stop - columns.start), bool)
    for text_object in {c.text_object for c in inked}:
        mask |= ink.of(text_object, box)
    spans = (np.ptp(np.flatnonzero(mask.any(axis))) if mask.any() else -BORDER - 1 for axis in (0, 1))
    return all(span + 1 + BORDER >= SPAN * length for span, length in zip(spans, mask.shape[::-1], strict=True))


def _is_scanned(word: list[Character], box: Box, ink: Ink, pictures: list[Box]) -> bool:
    """Returns whether a word is invisible text over ink of a picture, as OCR programs write it on scanned pages."""
    if not all(c.mode == INVISIBLE for c in word):
        return False
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    if not any(x0 <= x <= x1 and y0 <= y <= y1 for x0, y0, x1, y1 in pictures):
        return False
    place = ink.paper[pixels(box, ink.paper.shape)]
    return place.size > 0 and int(np.ptp(place.min(-1))) >= CONTRAST


def _pictures(page: Any, size: tuple[int, int]) -> list[Box]:
    """Returns the boxes of images on a page, and of groups that hold images, in pixels."""
    import pypdfium2.raw as pdfium

    boxes, kinds = [], (pdfium.FPDF_PAGEOBJ_IMAGE, pdfium.FPDF_PAGEOBJ_FORM)
    in_groups = any(image.container for image in page.get_objects(filter=[kinds[0]]))
    for item in page.get_objects(filter=kinds, max_depth=1):
        if item.type == kinds[0] or in_groups:
            boxes.append(_device(page, size, item.get_bounds()))
    return boxes


def _letters(character: str) -> str:
    """Returns the letters of a ligature or positional form (fi, Arabic), "" for a soft mark, else the character."""
    if "\ufb00" <= character <= "\ufdff" or "\ufe70" <= character <= "\ufefe":
        return unicodedata.normalize("NFKC", character)
    joiner = character in "\u200c\u200d"  # part of how some scripts are written
    return "" if unicodedata.category(character) == "Cf" and not joiner else character


def _device(page: Any, size: tuple[int, int], box: tuple[float, float, float, float]) -> Box:
    """Converts a box from the page's own space (points, y upwards, before rotation) to pixels of the drawn page."""
    import pypdfium2.raw as pdfium

    x, y = ctypes.c_int(), ctypes.c_int()
    corners = []
    for px, py in ((box[0], box[1]), (box[2], box[3])):
        wide, high = size[0] * FINE, size[1] * FINE
        pdfium.FPDF_PageToDevice(page, 0, 0, wide, high, 0, px, py, ctypes.byref(x), ctypes.byref(y))
        corners.append((x.value / FINE, y.value / FINE))
    (ax, ay), (bx, by) = corners
    return min(ax, bx), min(ay, by), max(ax, bx), max(ay, by)


def _around(boxes: list[Box], size: tuple[int, int]) -> Box | None:
    """Returns the part of the box around boxes that is on the page; None if the page's crop leaves nothing of it."""
    if not boxes:
        return None
    x0, y0 = (max(0.0, min(box[i] for box in boxes)) for i in (0, 1))
    x1, y1 = (min(float(size[i - 2]), max(box[i] for box in boxes)) for i in (2, 3))
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def _gaps(one: Box, other: Box) -> tuple[float, float]:
    """Returns the horizontal and vertical distance of two boxes; negative where they overlap."""
    return max(one[0], other[0]) - min(one[2], other[2]), max(one[1], other[1]) - min(one[3], other[3])
