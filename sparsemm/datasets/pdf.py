"""Pages of born-digital PDF files: what the page looks like, and every word of its text layer with its box."""

from __future__ import annotations

import ctypes
import unicodedata
import warnings
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparsemm.datasets.faults import readable
from sparsemm.datasets.glyphs import recognized
from sparsemm.datasets.images import Box
from sparsemm.datasets.ink import Ink, address, pixels
from sparsemm.datasets.records import Entry, Record
from sparsemm.errors import DataError, EmptyRecord
from sparsemm.fetch import Place, local

LONGEST = 4096  # pixels of a page's longer side, at most; posters are drawn at fewer dots an inch
INVISIBLE = 3  # the text render mode that paints nothing
SPAN = 0.4  # of a word's box that its ink must span, each way,
BORDER = 2  # but for the pixels that a box touches at its edges
CONTRAST = 48  # of 256 levels, between a scanned word and its paper, at least
FINE = 64  # parts of a pixel that boxes are measured in
HYPHENS = ("\x02", "\ufffe")  # what PDFium gives for a hyphen that ends a line


@dataclass(frozen=True)
class Page:
    """One page of an open document."""

    where: str
    name: str
    index: int
    document: Any


@dataclass
class Character:
    """One character of a page's text layer.

    Attributes:
        text: the letters it stands for: one, several (a ligature), or none (a soft mark).
        text_object: the address of the object that draws it.
        ink: box around its glyph, in pixels; None if it has none.
        frame: box of its cell, as high as the font; None if it could not be read.
        is_told: whether the file says which character it is.
        ends: whether a word ends before it and it is part of none: a blank.
        hyphen: whether it is the hyphen that ends a line.
        mode: how it is painted, in PDFium's numbers.
        font: the address of its font, if that maps it to no character and `text` is no more than its code; else 0.
    """

    text: str
    text_object: int = 0
    ink: Box | None = None
    frame: Box | None = None
    is_told: bool = True
    ends: bool = False
    hyphen: bool = False
    mode: int = 0
    font: int = 0


def rows(place: Place, first: int, stop: int | None) -> Generator[Page | DataError, None, None]:
    """The pages of the PDF files [first, stop), files by name; a page can be read until the next is asked for.

    A DataError stands for a file that cannot be opened.

    Raises:
        DataError: if there is no PDF file, or pypdfium2 is not installed.
        FetchError: if a file cannot be had.
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
            with readable(where, "cannot be opened"):  # damaged, or behind a password
                with place.files[name].open() as handle:
                    document = pypdfium2.PdfDocument(handle.read())
                count = len(document)
        except DataError as error:
            yield error
            continue
        try:
            for index in range(count):
                yield Page(f"{where}, page {index + 1}", name, index, document)
        finally:
            document.close()


def record(row: Page, source: str, licence: str, dpi: int) -> Record:
    """The page at `dpi` with the words that are seen on it, in the order of the text layer.

    What annotations draw (notes, filled fields) is part of the page. Words whose characters cannot be told (fonts
    without a mapping to Unicode) are left out, and a remark says how many.

    Raises:
        DataError: if the page cannot be read.
        EmptyRecord: if the page has no text layer, or none that is seen and can be told.
    """
    with readable(row.where, "the page cannot be drawn"), _opened(row) as page:
        scale = min(dpi / 72, LONGEST / max(page.get_size()))  # a PDF's unit is 1/72 inch
        ink = Ink(page, scale)
        words, untold, unseen = _words(page, ink)
    if not words:
        what = (
            f"of its words, {unseen} are not seen and {untold} cannot be told" if untold + unseen else "no text layer"
        )
        raise EmptyRecord(what, where=row.where)
    remarks = (f"{row.where}: {untold} words that are seen cannot be told",) if untold else ()
    return Record(f"{row.name}#{row.index + 1}", ink.image, tuple(words), source, licence, remarks)


def read_pdfs(path: str | Path, dpi: int = 144, limit: int | None = None) -> list[Record]:
    """Returns the pages of a PDF file, or of those in a folder, as records for `sparsemm.score_heads`.

    Pages without a text layer are left out; so are pages and files that cannot be read, with a warning for each.

    Args:
        path: file or folder.
        dpi: resolution of the page images, in pixels per inch.
        limit: at most so many pages.

    Raises:
        DataError: if there is no PDF file, none of its pages can be read, or pypdfium2 is not installed.
        FetchError: if the path does not exist.
    """
    place = local(str(path), Path("."))
    records: list[Record] = []
    with closing(rows(place, 0, None)) as pages:
        for page in pages:
            if limit is not None and len(records) >= limit:
                break
            try:
                if isinstance(page, DataError):
                    raise page
                records.append(record(page, place.address, "not stated", dpi).validate())
            except EmptyRecord:
                continue
            except DataError as error:
                warnings.warn(f"left out: {error}", stacklevel=2)
    if not records:
        raise DataError("no page with text that can be read", where=place.address, hint="scans need OCR first")
    return records


@contextmanager
def _opened(row: Page) -> Iterator[Any]:
    """The page, with what its annotations draw made part of its content, so that their text is in the text layer."""
    import pypdfium2.raw as pdfium

    page = row.document[row.index]
    try:
        annotations = pdfium.FPDFPage_GetAnnotCount(page)
        if annotations > 0:
            for index in reversed(range(annotations)):
                if not _is_shown(page, index):
                    pdfium.FPDFPage_RemoveAnnot(page, index)
            box = page.get_bbox()
            page.set_mediabox(*box)  # PDFium's own way to flatten forgets what the page inherits
            page.set_cropbox(*box)
            pdfium.FPDFPage_Flatten(page, pdfium.FLAT_NORMALDISPLAY)
            page.close()
            page = row.document[row.index]
        yield page
    finally:
        page.close()


def _is_shown(page: Any, index: int) -> bool:
    """Whether an annotation is drawn on a screen; one that belongs to a layer is taken for hidden."""
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
    """The words that are seen, how many more are seen but cannot be told, and how many are not seen.

    A word ends at a blank, at the end of a line (a hyphen there is part of it), and where the next character stands
    further away than it is large. Its box is around the ink of its characters.
    """
    characters = _characters(page, ink.image.size)
    boxes: dict[int, list[Box]] = {}
    for one in characters:
        if one.ink:
            boxes.setdefault(one.text_object, []).append(one.ink)
    ink.find(boxes)
    _recognize(characters, ink)
    pictures = _pictures(page, ink.image.size) if any(one.mode == INVISIBLE for one in characters) else []
    words: list[Entry] = []
    untold = unseen = 0
    for word in _split(characters):
        text, box = "".join(one.text for one in word), _around([one.ink for one in word if one.ink])
        box = box and _on_page(box, ink.image.size)
        told = all(one.is_told for one in word)
        if told and not text.strip():
            continue
        if box is None or not (_is_seen(word, box, ink) or _is_scanned(word, box, ink, pictures)):
            unseen += 1
        elif told:
            words.append(Entry(text, box, "word"))
        else:
            untold += 1
    return words, untold, unseen


def _characters(page: Any, size: tuple[int, int]) -> list[Character]:
    """The characters of the text layer; one that cannot be read is one that cannot be told."""
    layer = page.get_textpage()
    try:
        characters: list[Character] = []
        high = ""  # the first half of a character beyond U+FFFF
        for index in range(layer.count_chars()):
            try:
                one, high = _character(page, layer, index, size, high)
            except Exception:  # whatever one character raises costs its word
                one, high = Character("\ufffd", is_told=False), ""
            if one:
                characters.append(one)
        return characters
    finally:
        layer.close()


def _character(page: Any, layer: Any, index: int, size: tuple[int, int], high: str) -> tuple[Character | None, str]:
    """One character, or none and the half that it is."""
    import pypdfium2.raw as pdfium

    code = pdfium.FPDFText_GetUnicode(layer, index)
    if 0xD800 <= code < 0xDC00 and not high:
        return None, chr(code)
    character = (high + chr(code)).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if len(character) > 1:
        raise ValueError("half a character")
    category = unicodedata.category(character)
    is_told = pdfium.FPDFText_HasUnicodeMapError(layer, index) != 1
    hyphen = is_told and character in HYPHENS
    box = _device(page, size, layer.get_charbox(index))
    ink = box if box[0] < box[2] and box[1] < box[3] else None
    if not hyphen and (character.isspace() or category == "Cc" and code) and (is_told or ink is None):
        return Character("", ends=True), ""
    text_object = pdfium.FPDFText_GetTextObject(layer, index)
    return Character(
        "-" if hyphen else _plain(character),
        address(text_object),
        ink,
        _device(page, size, layer.get_charbox(index, loose=True)),
        is_told and (hyphen or category not in ("Co", "Cn") and character != "\ufffd"),
        hyphen=hyphen,
        mode=pdfium.FPDFTextObj_GetTextRenderMode(text_object) if text_object else 0,
        font=0 if is_told or not text_object else address(pdfium.FPDFTextObj_GetFont(text_object)),
    ), ""


def _recognize(characters: list[Character], ink: Ink) -> None:
    """Tell the characters whose code is what they look like, as in fonts that were made before Unicode."""
    fonts: dict[int, dict[str, Any]] = {}
    for one in characters:
        if one.font and one.ink and one.text.isspace():  # a blank, unless something is drawn there
            one.ends = not ink.of(one.text_object, one.ink).any()
        if one.font and one.ink and len(one.text) == 1:
            fonts.setdefault(one.font, {}).setdefault(one.text, ink.contrast(one.text_object, one.ink))
    right = {font: recognized(glyphs) for font, glyphs in fonts.items()}
    for one in characters:
        one.is_told = one.is_told or one.text in right.get(one.font, ())


def _split(characters: Iterable[Character]) -> Iterator[list[Character]]:
    """The characters of each word."""
    word: list[Character] = []
    last: Box | None = None
    for one in characters:
        if last and one.frame and max(_gaps(last, one.frame)) > max(_size(one.frame)):
            yield word
            word, last = [], None
        if not one.ends:
            word.append(one)
            last = one.frame or last
        if word and (one.ends or one.hyphen):
            yield word
            word, last = [], None
    if word:
        yield word


def _is_seen(word: list[Character], box: Box, ink: Ink) -> bool:
    """Whether every letter and digit of a word has left ink (in a word of neither, anything), on most of its box."""
    inked = [one for one in word if one.ink]
    needed = [one for one in inked if one.text.isalnum()] or inked[:1]
    if not all(ink.of(one.text_object, one.ink).any() for one in needed if one.ink):
        return False
    rows, columns = pixels(box, (ink.image.height, ink.image.width))
    mask = np.zeros((rows.stop - rows.start, columns.stop - columns.start), bool)
    for text_object in {one.text_object for one in inked}:
        mask |= ink.of(text_object, box)
    spans = (np.ptp(np.flatnonzero(mask.any(axis))) if mask.any() else -BORDER - 1 for axis in (0, 1))
    return all(span + 1 + BORDER >= SPAN * length for span, length in zip(spans, mask.shape[::-1], strict=True))


def _is_scanned(word: list[Character], box: Box, ink: Ink, pictures: list[Box]) -> bool:
    """Whether a word is invisible text over ink of a picture, as programs that read scanned pages write it."""
    if not all(one.mode == INVISIBLE for one in word):
        return False
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    if not any(one[0] <= x <= one[2] and one[1] <= y <= one[3] for one in pictures):
        return False
    place = ink.paper[pixels(box, ink.paper.shape)]
    return place.size > 0 and int(np.ptp(place.min(-1))) >= CONTRAST


def _pictures(page: Any, size: tuple[int, int]) -> list[Box]:
    """The boxes of images on a page, and of groups that hold some, in pixels."""
    import pypdfium2.raw as pdfium

    boxes, kinds = [], (pdfium.FPDF_PAGEOBJ_IMAGE, pdfium.FPDF_PAGEOBJ_FORM)
    inner = {address(one.container.raw) for one in page.get_objects(filter=[kinds[0]]) if one.container}
    for one in page.get_objects(filter=kinds, max_depth=1):
        if one.type == kinds[0] or inner:
            boxes.append(_device(page, size, one.get_bounds()))
    return boxes


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


def _around(boxes: list[Box]) -> Box | None:
    if not boxes:
        return None
    lows = [min(box[i] for box in boxes) for i in (0, 1)]
    highs = [max(box[i] for box in boxes) for i in (2, 3)]
    return lows[0], lows[1], highs[0], highs[1]


def _on_page(box: Box, size: tuple[int, int]) -> Box | None:
    """The visible part of a box; None if the page's crop leaves nothing of it."""
    x0, y0, x1, y1 = max(box[0], 0.0), max(box[1], 0.0), min(box[2], float(size[0])), min(box[3], float(size[1]))
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def _size(box: Box) -> tuple[float, float]:
    return box[2] - box[0], box[3] - box[1]


def _gaps(one: Box, other: Box) -> tuple[float, float]:
    """How far two boxes are apart, across and down; negative where they overlap."""
    return max(one[0], other[0]) - min(one[2], other[2]), max(one[1], other[1]) - min(one[3], other[3])
