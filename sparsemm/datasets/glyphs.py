"""Checks by their looks which characters a font draws, for fonts without a mapping to Unicode."""

from __future__ import annotations

import string
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFont

FONTS = ("DejaVuSans", "DejaVuSerif")
LETTERS = string.ascii_letters + string.digits
MARKS = ".,;:!?()-/"  # characters besides letters and digits that can be recognised
SIDE = 16  # pixels of a compared glyph
NEAR = 0.1  # largest share of characters that a glyph may resemble more than its own (c and C, o and 0)
FAR = 0.3  # the same, once the font is trusted
LEAST_LETTERS, LEAST_NEAR = 3, 0.6  # a font is trusted if it has so many letters, and this share of them is near


def recognized(glyphs: Mapping[str, NDArray[np.uint8]]) -> set[str]:
    """Returns the characters that look like their codes; none if too few of the font's letters do.

    `glyphs` are the contrasts of each glyph's pixels, (height, width), by the character of its code. The code of
    another letter is among the nearest tenth by chance one time in ten, so a font with shifted or shuffled codes is not
    trusted.
    """
    pool = set(LETTERS + MARKS) | set(glyphs)
    ranks = {
        character: _rank(character, _fitted(glyph), pool) / len(pool)
        for character, glyph in glyphs.items()
        if glyph.any() and (character.isalnum() or character in MARKS)
    }
    letters = [rank for character, rank in ranks.items() if character.isalnum()]
    if len(letters) < LEAST_LETTERS or sum(rank < NEAR for rank in letters) < LEAST_NEAR * len(letters):
        return set()
    return {character for character, rank in ranks.items() if rank < FAR}


def _rank(character: str, glyph: tuple[NDArray[np.float64], float], pool: set[str]) -> int:
    """Counts the characters of a pool that a glyph resembles more."""
    own = _distance(glyph, character)
    return sum(_distance(glyph, other) < own for other in pool - {character})


def _distance(glyph: tuple[NDArray[np.float64], float], character: str) -> float:
    shapes = (_drawn(character, name) for name in FONTS)
    return min(
        float(1 - (glyph[0] * shape).mean() + abs(glyph[1] - width) / 2) if shape.any() else 4.0
        for shape, width in shapes
    )


@lru_cache(maxsize=4096)
def _drawn(character: str, name: str) -> tuple[NDArray[np.float64], float]:
    path = Path(__file__).parent / "fonts" / f"{name}.ttf"
    font = ImageFont.truetype(str(path), 48, layout_engine=ImageFont.Layout.BASIC)
    mask = font.getmask(character)
    return _fitted(np.asarray(mask, np.uint8).reshape(mask.size[::-1]))


def _fitted(glyph: NDArray[np.uint8]) -> tuple[NDArray[np.float64], float]:
    """Returns a glyph's ink stretched to a square, of mean 0 and variance 1, and the logarithm of width by height."""
    ink = glyph > glyph.max(initial=0) / 4
    if not ink.any():
        return np.zeros((SIDE, SIDE)), 0.0
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    cut = glyph[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    picture = Image.fromarray((cut * (255 / cut.max())).astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.BOX)
    shape = np.asarray(picture, np.float64)
    return (shape - shape.mean()) / (shape.std() + 1), float(np.log(cut.shape[1] / cut.shape[0]))
