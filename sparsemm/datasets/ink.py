"""Which characters of a PDF page are seen: a page is drawn with its text, and without, and what differs is ink."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sparsemm.datasets.images import Box

FAINT = 16  # of 256 levels: what changes a pixel by less is not seen
LAYERS = 6  # texts above one another that are told apart; what lies below more of them is not looked for
SHARED = 0.1  # of a character's box may be another text's, as where lines are close


class Ink:
    """What the text objects of a page put on its picture.

    A text object is drawn alone, above everything on the page that is no text. Its pixels that differ from the page
    without text are its ink, if most of them look the same on the whole page. A hidden layer, an invisible mode, a
    glyph that cannot be drawn, white on white and what is clipped or covered leave none. Objects that do not overlap
    are drawn together.

    Attributes:
        image: the whole page.
        paper: after `find` the page without its text, (height, width, 3) uint8.
    """

    def __init__(self, page: Any, scale: float) -> None:
        import pypdfium2.raw as pdfium

        self._page, self._scale = page, scale
        texts = page.get_objects(filter=[pdfium.FPDF_PAGEOBJ_TEXT])
        self._texts = {address(text.raw): text.raw for text in texts}
        self.paper = self._drawn()
        self.image = Image.fromarray(self.paper)
        self._whole = _channels(self.paper)
        self._ink: dict[int, tuple[NDArray[np.uint8], NDArray[np.uint8]]] = {}

    def find(self, boxes: dict[int, list[Box]]) -> None:
        """Look for the ink of text objects. What is read of the page's text has to be read before.

        Args:
            boxes: of the characters of each text object, by its address, in pixels.
        """
        self._activate(self._texts, False)
        self.paper = self._drawn()
        layers: list[tuple[NDArray[np.bool_], list[int]]] = []
        for text, ones in boxes.items():
            places = [pixels(box, self.paper.shape) for box in ones]
            free = (layer for layer in layers if _is_free(layer[0], places))
            if (layer := next(free, None)) is None:
                if len(layers) == LAYERS:
                    continue
                layer = np.zeros(self.paper.shape[:2], bool), []
                layers.append(layer)
            layer[1].append(text)
            for place in places:
                layer[0][place] = True
        paper = _channels(self.paper)
        for _, texts in layers:
            if len(layers) == 1 and len(texts) == len(self._texts):
                alone = self._whole
            else:
                self._activate(texts, True)
                alone = _channels(self._drawn())
                self._activate(texts, False)
            change, whole = alone - paper, self._whole - paper
            contrast = np.abs(change).max(0).astype(np.uint8)
            # What lies above may make it darker, as a second copy does, but must not undo the change by more than half.
            left = np.zeros(contrast.shape, np.int32)
            for one, other in zip(change, whole, strict=True):
                left += one.astype(np.int32) * (2 * other - one)
            kept = np.where(left >= 0, contrast, np.uint8(0))
            self._ink |= dict.fromkeys(texts, (contrast, kept))

    def of(self, text: int, box: Box) -> NDArray[np.bool_]:
        """The ink of a text object in a box: a mask of its pixels."""
        place = pixels(box, self.paper.shape)
        if text not in self._ink:
            return np.zeros(self.paper[place].shape[:2], bool)
        contrast, kept = (one[place] for one in self._ink[text])
        ink: NDArray[np.bool_] = (kept >= FAINT) & bool(2 * int(kept.sum()) >= int(contrast.sum()))
        return ink

    def contrast(self, text: int, box: Box) -> NDArray[np.uint8]:
        """How much each pixel of a box differs from the page without text where the text object is drawn alone."""
        place = pixels(box, self.paper.shape)
        return self._ink[text][0][place] if text in self._ink else np.zeros((0, 0), np.uint8)

    def _drawn(self) -> NDArray[np.uint8]:
        picture = self._page.render(scale=self._scale, may_draw_forms=False, draw_annots=False)
        return np.array(picture.to_pil().convert("RGB"))

    def _activate(self, texts: Iterable[int], active: bool) -> None:
        import pypdfium2.raw as pdfium

        for text in texts:
            if text in self._texts:
                pdfium.FPDFPageObj_SetIsActive(self._texts[text], active)


def _channels(picture: NDArray[np.uint8]) -> NDArray[np.int16]:
    """(3, height, width): numpy is slow on a last axis of three."""
    return np.ascontiguousarray(picture.transpose(2, 0, 1), np.int16)


def _is_free(taken: NDArray[np.bool_], places: Iterable[tuple[slice, slice]]) -> bool:
    return all(taken[place].mean() <= SHARED for place in places if taken[place].size)


def address(pointer: Any) -> int:
    """What tells one object of PDFium from another; 0 of none."""
    return ctypes.cast(pointer, ctypes.c_void_p).value or 0


def pixels(box: Box, shape: Sequence[int]) -> tuple[slice, slice]:
    """The pixels that a box touches on a picture of (height, width, ...)."""
    (x0, x1), (y0, y1) = (_touched(box[axis], box[axis + 2], shape[1 - axis]) for axis in (0, 1))
    return slice(y0, y1), slice(x0, x1)


def _touched(low: float, high: float, length: int) -> tuple[int, int]:
    thin = high - low < 2  # a stroke, which may be drawn a pixel away
    first, last = math.floor(low) - thin, math.ceil(high) + thin
    return min(max(first, 0), length), min(max(last, 0), length)
