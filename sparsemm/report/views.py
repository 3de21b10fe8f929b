"""Where visual heads and others look on one page: what the PNG figure and the page's pictures both draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw

from sparsemm.report.looking import Looking
from sparsemm.scores import ScoreTable

EACH = 3  # heads of a kind
SIDE = 320  # pixels that the longer side of a picture has at least, and not many more
STRONGEST = 0.75  # opacity of the strongest attention
GRID, THUMBNAIL, WORD = "#D55E00", "#009E73", "#0072B2"
Box = tuple[float, float, float, float]
Head = tuple[int, int, float]  # layer, query head, share of the score


@dataclass(frozen=True)
class View:
    """Where one head looks.

    Attributes:
        title: which head it is.
        said: its share of the score, and how much of its attention is on the page.
        rectangles: (N, 4) float64, (x0, y0, x1, y1) in pixels of the page, of every visual token.
        attention: (N,) attention on each of them.
        coarse: (N,) bool, tokens of the thumbnail, where the family has one.
    """

    title: str
    said: str
    rectangles: NDArray[np.float64]
    attention: NDArray[np.floating]
    coarse: NDArray[np.bool_]


@dataclass(frozen=True)
class Views:
    """Visual heads and others over one page, just before the model says a word.

    Attributes:
        image: the page.
        word, box: what is about to be said and where it stands, in pixels.
        visual: the best heads by score, best first.
        others: as many heads of zero score, or the last ones.
    """

    image: Image.Image
    word: str
    box: Box
    visual: list[View]
    others: list[View]

    @property
    def strongest(self) -> float:
        """The largest attention of all, so that heads compare."""
        return max([1e-12, *(float(view.attention.max()) for view in (*self.visual, *self.others))])


def middle_token(page: Looking) -> int | None:
    """The first token of the word in the middle of what the model reads of a page; None if it reads no word."""
    words = [token.entry for token in page.tokens if token.entry is not None]
    if not words:
        return None
    return next(i for i, token in enumerate(page.tokens) if token.entry == words[len(words) // 2])


def unscored(ranked: Sequence[Head], count: int) -> list[Head]:
    """Heads without any score, evenly from all of them; the last ones where there are not `count`."""
    zero = [head for head in ranked if head[2] == 0]
    if len(zero) < count:
        return list(ranked[len(ranked) - count :])
    return [zero[at] for at in np.linspace(0, len(zero) - 1, count).round().astype(int)]


def head_views(pages: Sequence[Looking] | str, table: ScoreTable) -> Views | None:
    """The best heads and others on the first page; None where no page was looked at or no word of it is read."""
    if isinstance(pages, str) or (token := middle_token(pages[0])) is None:
        return None
    page = pages[0]
    number = page.tokens[token].entry
    assert number is not None
    entry = page.record.entries[number]
    ranked = table.top_heads(table.scores.size)
    count = min(EACH, len(ranked) // 2)
    rank = {head: place for place, head in enumerate(ranked, start=1)}
    visual, others = (
        [_view(page, token, head, rank[head]) for head in heads] for heads in (ranked[:count], unscored(ranked, count))
    )
    return Views(page.record.image, entry.text, entry.box, visual, others)


def _view(page: Looking, token: int, head: Head, rank: int) -> View:
    layer, number, share = head
    on_page, on_thumbnail = page.sums[layer, number, token]
    said = f"{on_page:.0%} page" + (f", {on_thumbnail:.0%} thumbnail" if page.coarse.any() else "")
    return View(
        title=f"layer {layer}, head {number}" + (f" (rank {rank})" if share > 0 else ""),
        said=f"{share:.1%} of the score,\nattention: {said}",
        rectangles=page.rectangles,
        attention=(page.levels[layer, number, token] / 255) ** 2,
        coarse=page.coarse,
    )


def picture(views: Views, view: View) -> Image.Image:
    """RGB: the page in grey, attention over it, orange on its grid and green on its thumbnail; the word outlined."""
    scale = SIDE / max(views.image.size)
    scale = float(np.ceil(scale)) if scale > 1 else scale  # small pages keep their pixels
    size = (round(scale * views.image.width), round(scale * views.image.height))
    grey = views.image.convert("L").resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)
    pixels = np.asarray(grey.convert("RGB"), dtype=np.float32).copy()
    opacity = STRONGEST * view.attention / views.strongest
    for (x0, y0, x1, y1), weight, coarse in zip(
        (scale * view.rectangles).round().astype(int), opacity, view.coarse, strict=True
    ):
        part = pixels[y0:y1, x0:x1]
        part += float(weight) * (np.array(ImageColor.getrgb(THUMBNAIL if coarse else GRID), dtype=np.float32) - part)
    made = Image.fromarray(pixels.round().astype(np.uint8))
    ImageDraw.Draw(made).rectangle([scale * edge for edge in views.box], outline=WORD, width=3)
    return made
