"""Draws training batches of real pages: parts of the pages of a data set, as large as the pages that are drawn."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from PIL import Image, ImageDraw

from sparsemm.datasets.records import Entry, Record, read_records
from sparsemm.datasets.synthetic import CELL_HEIGHT, CELL_WIDTH, COLUMN_CELLS, FONTS, LICENCE, draw_word, page_text
from sparsemm.errors import DataError
from sparsemm.files import sha256_file
from sparsemm.training.batches import READ_PROMPT, Batch, BatchMaker

SIZES = ((84, 84), (168, 84))  # width and height of a part, those of the drawn pages, batch by batch in turn
LEAST_WORDS = 4
MOST_WORDS, GROWTH = 2, 12  # words of a part in the first batch, at most, and batches until there may be one more
TRIES = 200  # corners that are tried for a part with `LEAST_WORDS` whole words
REDRAWN = 0.5  # share of the parts whose words are drawn anew, as on our own pages


def whole_words(page: Record, left: float, top: float, size: tuple[int, int]) -> list[Entry]:
    """Returns the entries of a page that lie wholly in the part of (width, height) `size` at this corner."""
    right, bottom = left + size[0], top + size[1]
    return [
        e for e in page.entries if left <= e.box[0] and top <= e.box[1] and e.box[2] <= right and e.box[3] <= bottom
    ]


def cut_out(page: Record, words: Iterable[Entry], left: int, top: int, size: tuple[int, int]) -> Record:
    """Returns the part of a page of (width, height) `size` in pixels at a corner, with these whole words alone."""
    image, entries = Image.new("RGB", size, "white"), []
    for entry in words:
        x0, y0, x1, y1 = (round(side) for side in entry.box)
        image.paste(page.image.crop((x0, y0, x1 + 1, y1 + 1)), (x0 - left, y0 - top))
        box = (x0 - left, y0 - top, min(x1 - left, size[0]), min(y1 - top, size[1]))
        entries.append(Entry(entry.text, box, "word"))
    return Record(page.id, image, tuple(entries), page.source, page.licence)


def redrawn(words: Iterable[str], number: int, size: tuple[int, int] = SIZES[1]) -> Record:
    """Returns words as our pages draw them, as many as fit: column by column, each at the next even cell with room.

    `number` chooses the font, and is part of the record's id.
    """
    width, height = size
    image = Image.new("L", size, 235)
    draw, entries, rows = ImageDraw.Draw(image), [], height // CELL_HEIGHT
    line = cell = 0
    for word in (word for word in words if len(word) <= COLUMN_CELLS):
        if cell and cell + len(word) > COLUMN_CELLS:
            line, cell = line + 1, 0
        column, row = divmod(line, rows)
        left = column * COLUMN_CELLS
        if left == width // CELL_WIDTH:
            break
        draw_word(draw, word, left + cell, row, FONTS[number % len(FONTS)], 10, 30, (0, 0), 1)
        x, y = (left + cell) * CELL_WIDTH, row * CELL_HEIGHT
        entries.append(Entry(word, (x, y, x + len(word) * CELL_WIDTH, y + CELL_HEIGHT), "word"))
        cell += (len(word) + 2) // 2 * 2
    return Record(f"redrawn-{number}", image.convert("RGB"), tuple(entries), "redrawn", LICENCE)


class Parts:
    """The parts of a data set's pages, half of them with their words drawn anew.

    The first ones have a word or two, and of longer text a few words in a row; batch by batch there may be more.

    Args:
        path: records whose lines are about as high as those of our pages (14 pixels): a 12 point leading at 84 dpi.
        seed: seed of the parts and their order.

    Raises:
        DataError: if the records cannot be read, or no page has a part with `LEAST_WORDS` whole words.
    """

    def __init__(self, path: Path, seed: int) -> None:
        self.seed = seed
        # One byte a pixel: hundreds of pages are held at once.
        self.pages = [replace(record, image=record.image.convert("L")) for record in read_records(path)]
        self.pages = [page for page in self.pages if len(page.entries) >= LEAST_WORDS]
        self.source = {"pages": len(self.pages), "records_sha256": sha256_file(path)}
        if not self.pages:
            raise DataError(f"no page with {LEAST_WORDS} words", where=str(path))

    def draw(self, rng: random.Random, size: tuple[int, int], most: int) -> Record:
        """Draws a part of a page that has `LEAST_WORDS` whole words, and of these at most `most` in a row.

        Raises DataError if `TRIES` corners of pages have none, as where the type is too large.
        """
        for _ in range(TRIES):
            page = rng.choice(self.pages)
            corner = rng.choice(page.entries).box
            left, top = int(corner[0]) - rng.randrange(3), int(corner[1]) - rng.randrange(3)
            words = whole_words(page, left, top, size)
            if len(words) < LEAST_WORDS:
                continue
            count = min(len(words), rng.randint(1, most))
            first = rng.randrange(len(words) - count + 1)
            words = words[first : first + count]
            if rng.random() >= REDRAWN:
                return cut_out(page, words, left, top, size)
            part = redrawn((entry.text for entry in words), rng.randrange(len(FONTS)), size)
            if part.entries:
                return part
        raise DataError(
            f"no part of {size[0]} x {size[1]} pixels with {LEAST_WORDS} words",
            where=self.pages[0].source,
            hint="draw the pages at a lower resolution",
        )

    def batch(self, maker: BatchMaker, size: int, number: int) -> Batch:
        """Returns batch `number` of `size` parts to be read; the same for the same seed and number."""
        rng = random.Random(f"parts/{self.seed}/{number}")
        most = MOST_WORDS + number // GROWTH
        parts = [self.draw(rng, SIZES[number % len(SIZES)], most) for _ in range(size)]
        return maker.batch(parts, [[(READ_PROMPT, page_text(part), None)] for part in parts])
