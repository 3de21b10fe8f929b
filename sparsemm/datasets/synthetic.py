"""Draws document-like pages, forms and running words, with exact boxes; deterministic in the seed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sparsemm.datasets.records import Entry, Record
from sparsemm.errors import DataError

SPLITS = ("train", "calibration", "evaluation")
FONTS = ("DejaVuSansMono", "DejaVuSans", "DejaVuSerif")
LICENCE = "Apache-2.0 (page), Bitstream Vera / DejaVu (glyphs)"

# Words that label a value or precede another word. A tokenizer may have them as single tokens.
ANCHORS = tuple(
    (
        "name date city code item unit cost rate size type year page line file tax sum net fee lot box bag car bus van "
        "sun sky sea oak elm fig pea nut tea milk rice corn salt wine beer fish meat bird wolf bear lion deer frog "
        "gold iron zinc lead ruby jade silk wool rope nail desk lamp door wall roof"
    ).split()
)

MOST_WORDS = 10_000  # words of a text without repeats; there are about 420,000 values

CELL_WIDTH, CELL_HEIGHT = 7, 14  # one character, in pixels at scale 1
COLUMN_CELLS = 12  # characters in one column

# (least, most) font size in pixels at scale 1. The checkpoints of this repository were trained on plain pages.
TYPE_SIZES = {"plain": (9, 11), "small": (8, 8), "large": (12, 12)}


@dataclass(frozen=True)
class PageStyle:
    """The look of a page."""

    columns: int = 1  # columns of text side by side, each 84 px wide at scale 1
    rows: int = 6  # lines of a column, each 14 px high at scale 1
    filled: tuple[int, int] = (4, 6)  # (least, most) lines drawn on the whole page; the others are blank
    scale: int = 1  # factor of all sizes (1 suits the tiny checkpoints, 4 a real one)
    # one of `TYPE_SIZES`; boxes have the height of a line, whatever the size of its letters
    type_size: Literal["plain", "small", "large"] = "plain"


@dataclass(frozen=True)
class Question:
    """A question about a page, its exact answer, and `kind`: "value" (of a key) or "next" (word after a word)."""

    prompt: str
    answer: str
    kind: str


@lru_cache(maxsize=64)
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    # The basic layout engine gives the same pixels whether or not the machine has libraqm.
    path = Path(__file__).parent / "fonts" / f"{name}.ttf"
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


def _value(rng: random.Random) -> tuple[str, str]:
    length = rng.randint(3, 5)
    if rng.random() < 0.5:
        return "".join(rng.choice("0123456789") for _ in range(length)), "number"
    first = rng.randrange(2)
    letters = ("bcdfghjklmnpqrstvwxyz", "aeiou")
    return "".join(rng.choice(letters[(first + i) % 2]) for i in range(length)), "word"


def draw_words(rng: random.Random, count: int) -> list[str]:
    """Draws different words as on pages, in random order: at most half of them labels, the others values.

    Raises DataError if there are not so many words.
    """
    if not 0 <= count <= MOST_WORDS:
        raise DataError(f"cannot draw {count} different words", where="synthetic", hint=f"at most {MOST_WORDS}")
    words = dict.fromkeys(rng.sample(ANCHORS, min(count // 2, len(ANCHORS))))
    while len(words) < count:
        words[_value(rng)[0]] = None
    drawn = list(words)
    rng.shuffle(drawn)
    return drawn


def draw_record(split: str, seed: int, index: int, style: PageStyle) -> Record:
    """Draws page `index` of a split.

    The generator is seeded by (split, seed, index). The values of a page have a checksum (`split_of`) that belongs to
    one split, so no page of a split can appear in another. Raises DataError if the split is unknown or the style leaves
    no line.
    """
    if split not in SPLITS:
        raise DataError(f"split {split!r} is unknown", where="synthetic", hint=f"use one of {SPLITS}")
    cells = style.columns * style.rows
    if not 1 <= style.filled[0] <= style.filled[1] <= min(cells, len(ANCHORS)):
        raise DataError(f"cannot fill {style.filled} of {cells} lines", where="synthetic")
    rng = random.Random(f"sparsemm/{split}/{seed}/{index}")
    count = rng.randint(*style.filled)
    places = sorted(rng.sample(range(cells), count))  # column-major, in reading order
    anchors = rng.sample(ANCHORS, count)
    while True:
        values = [_value(rng) for _ in range(count)]
        if split_of([text for text, _ in values]) == split:
            break
    s = style.scale
    width, height = style.columns * COLUMN_CELLS * CELL_WIDTH * s, style.rows * CELL_HEIGHT * s
    paper, ink = rng.randint(205, 255), rng.randint(0, 70)
    image = Image.new("L", (width, height), paper)
    draw = ImageDraw.Draw(image)
    font, size = rng.choice(FONTS), rng.randint(*TYPE_SIZES[style.type_size]) * s
    dx, dy = rng.randint(0, 1) * s, rng.randint(-1, 1) * s
    entries: list[Entry] = []
    for place, anchor, (value, kind) in zip(places, anchors, values, strict=True):
        column, row = divmod(place, style.rows)
        is_pair = rng.random() < 0.6
        left = anchor + ":" if is_pair else anchor
        x, y = column * COLUMN_CELLS, row
        draw_word(draw, left, x, y, font, size, ink, (dx, dy), s)
        stop = x + (len(left) + 2) // 2 * 2  # tab stops every two characters, with at least one blank before
        draw_word(draw, value, stop, y, font, size, ink, (dx, dy), s)
        entries.append(Entry(left, _box(left, x, y, s), "key" if is_pair else "word"))
        entries.append(Entry(value, _box(value, stop, y, s), "value" if is_pair else kind))
    noise = np.random.default_rng(rng.getrandbits(63)).normal(0.0, rng.uniform(0.0, 12.0), (height, width))
    pixels = np.clip(np.asarray(image, dtype=np.float64) + noise, 0, 255).astype(np.uint8)
    page = Image.fromarray(pixels).convert("RGB")
    return Record(f"synthetic-{split}-{seed}-{index}", page, tuple(entries), "synthetic", LICENCE).validate()


def _box(text: str, cell: int, line: int, scale: int) -> tuple[float, float, float, float]:
    x, y = cell * CELL_WIDTH * scale, line * CELL_HEIGHT * scale
    return float(x), float(y), float(x + len(text) * CELL_WIDTH * scale), float(y + CELL_HEIGHT * scale)


def draw_word(
    draw: ImageDraw.ImageDraw,
    text: str,
    cell: int,
    line: int,
    font_name: str,
    size: int,
    ink: int,
    shift: tuple[int, int],
    scale: int,
) -> None:
    """Draws each character centred in its own cell, so that the box of a word is exact in every font."""
    font = _font(font_name, size)
    for i, character in enumerate(text):
        x = (cell + i + 0.5) * CELL_WIDTH * scale + shift[0]
        y = (line + 0.5) * CELL_HEIGHT * scale + size * 0.36 + shift[1]
        draw.text((round(x), round(y)), character, fill=ink, font=font, anchor="ms")


def split_of(values: list[str]) -> str:
    """Returns the only split that may hold a page with these values (half are train, a quarter each of the others)."""
    total = sum(ord(c) * (i + 1) for i, c in enumerate("/".join(values))) % 4
    return ("train", "train", "calibration", "evaluation")[total]


def page_text(record: Record) -> str:
    """Returns the text of a page: its entries in reading order, separated by single spaces."""
    return " ".join(entry.text for entry in record.entries)


def questions(record: Record) -> list[Question]:
    """Returns every question that a page answers, in reading order: the value of a key, the word after a word."""
    result = []
    for left, right in zip(record.entries[::2], record.entries[1::2], strict=True):
        if left.kind == "key":
            result.append(Question(f"What is {left.text[:-1]}?", right.text, "value"))
        else:
            result.append(Question(f"What follows {left.text}?", right.text, "next"))
    return result
