"""Finds the visible characters of a PDF page, by comparing the page drawn with and without its text."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sparsemm.datasets.images import Box

FAINT = 16  # of 256 levels; a smaller change of a pixel is not visible
LAYERS = 6  # overlapping texts that are distinguished; the ink of further ones is not searched
SHARED = 0.1  # share of a character's box that another text may cover, as when lines are close


class Ink:
    """The ink of each text object on the picture of a page.

    A text object is drawn alone, on the page without its other text. The pixels that change are its ink, if most of
    them look the same on the whole page. Hidden layers, invisible modes, glyphs that cannot be drawn, white on white,
    and clipped or covered text leave no ink. Objects that do not overlap are drawn together. `image` is the whole page,
    and `paper`, after `find`, the page without its text, (height, width, 3) uint8.
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
        """Finds the ink of text objects, from their characters' boxes in pixels, by the objects' addresses.

        Read the page's text before, as this deactivates its objects.
        """
        self._activate(self._texts, False)
        self.paper = self._drawn()
        layers: list[tuple[NDArray[np.bool_], list[int]]] = []
        for text, boxes_of_text in boxes.items():
            places = [pixels(box, self.paper.shape) for box in boxes_of_text]
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
            # Text above it may darken it, as a second copy does, but must not undo more than half of the change.
            agreement = np.zeros(contrast.shape, np.int32)
            for own, total in zip(change, whole, strict=True):
                agreement += own.astype(np.int32) * (2 * total - own)
            kept = np.where(agreement >= 0, contrast, np.uint8(0))
            self._ink |= dict.fromkeys(texts, (contrast, kept))

    def of(self, text: int, box: Box) -> NDArray[np.bool_]:
        """Returns the mask of a text object's ink in the pixels of a box."""
        place = pixels(box, self.paper.shape)
        if text not in self._ink:
            return np.zeros(self.paper[place].shape[:2], bool)
        contrast, kept = (levels[place] for levels in self._ink[text])
        ink: NDArray[np.bool_] = (kept >= FAINT) & bool(2 * int(kept.sum()) >= int(contrast.sum()))
        return ink

    def contrast(self, text: int, box: Box) -> NDArray[np.uint8]:
        """Returns how much drawing the text object alone changes each pixel of a box."""
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
    """Returns the picture as (3, height, width), because numpy is slow on a last axis of three."""
    return np.ascontiguousarray(picture.transpose(2, 0, 1), np.int16)


def _is_free(taken: NDArray[np.bool_], places: Iterable[tuple[slice, slice]]) -> bool:
    return all(taken[place].mean() <= SHARED for place in places if taken[place].size)


def address(pointer: Any) -> int:
    """Returns the address of an object of PDFium, which identifies it; 0 for none."""
    return ctypes.cast(pointer, ctypes.c_void_p).value or 0


def pixels(box: Box, shape: Sequence[int]) -> tuple[slice, slice]:
    """Returns the pixels that a box touches on a picture of (height, width, ...)."""
    (x0, x1), (y0, y1) = (_touched(box[axis], box[axis + 2], shape[1 - axis]) for axis in (0, 1))
    return slice(y0, y1), slice(x0, x1)


def _touched(low: float, high: float, length: int) -> tuple[int, int]:
    thin = high - low < 2  # a thin stroke may be drawn a pixel away
    first, last = math.floor(low) - thin, math.ceil(high) + thin
    return min(max(first, 0), length), min(max(last, 0), length)
