"""Draws pictures of a page: where heads attend to, and what methods keep of it."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw

from sparsemm.explorer.reading import Reading
from sparsemm.scores import ScoreTable

EACH = 3  # number of heads of a kind
SIDE = 320  # pixels of the longer side of a picture, or somewhat more
LARGEST = 1000  # most pixels of the longer side of a page in the explorer
STRONGEST = 0.75  # opacity of the strongest attention
VEIL = 0.8  # opacity of the white over evicted tokens
GRID, THUMBNAIL, WORD = "#D55E00", "#009E73", "#0072B2"
Head = tuple[int, int, float]  # layer, query head, share of the score


def data_uri(image: Image.Image, sharp: int = LARGEST // 2) -> str:
    """Returns a data URI: PNG if the longer side has at most `sharp` pixels, else JPEG of at most `LARGEST`."""
    buffer = io.BytesIO()
    if max(image.size) <= sharp:
        image.save(buffer, "PNG")
        kind = "png"
    else:
        small = image.copy()
        small.thumbnail((LARGEST, LARGEST))
        small.save(buffer, "JPEG", quality=80)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def middle_token(page: Reading) -> int | None:
    """Returns the first token of the middle one of the words that the model reads; None if it reads no word."""
    words = [token.entry for token in page.tokens if token.entry is not None]
    if not words:
        return None
    return next(i for i, token in enumerate(page.tokens) if token.entry == words[len(words) // 2])


def unscored(ranked: Sequence[Head], count: int) -> list[Head]:
    """Returns an even sample of the heads without any score, or the last heads if there are not `count` of them."""
    zero = [head for head in ranked if head[2] == 0]
    if len(zero) < count:
        return list(ranked[len(ranked) - count :])
    return [zero[at] for at in np.linspace(0, len(zero) - 1, count).round().astype(int)]


def attention(page: Reading, token: int, head: Head) -> NDArray[np.float64]:
    """Returns (N,) attention of a head on every visual token, just before the model produces the token."""
    return (page.levels[head[0], head[1], token] / 255) ** 2


def views(page: Reading, table: ScoreTable) -> dict[str, Any] | None:
    """Returns the word about to be said, and pictures of the best heads and of as many others; None without a word.

    Each picture is {"image": data URI, "text": which head it is and what it looks at}.
    """
    token = middle_token(page)
    if token is None:
        return None
    ranked = table.top_heads(table.scores.size)
    count = min(EACH, len(ranked) // 2)
    kinds = {"visual": ranked[:count], "others": unscored(ranked, count)}
    strongest = max(1e-12, *(float(attention(page, token, head).max()) for heads in kinds.values() for head in heads))
    return {"word": _word(page, token).text} | {
        kind: [
            {
                "image": data_uri(picture(page, token, attention(page, token, head) / strongest), 0),
                "text": _caption(page, token, head, ranked),
            }
            for head in heads
        ]
        for kind, heads in kinds.items()
    }


def method_pictures(page: Reading, table: ScoreTable) -> list[dict[str, str]]:
    """Draws the method on one page: where the best head attends to, then what sparsemm and snapkv keep in its KV head.

    The budget is the middle one. The list is empty if no word is read.
    """
    token = middle_token(page)
    if token is None:
        return []
    (best,) = table.top_heads(1)
    weights = attention(page, token, best)
    shares = weights / max(1e-12, float(weights.max()))
    word = _word(page, token).text
    text = f"The best visual head (layer {best[0]}, head {best[1]}) just before the model says “{word}”"
    pictures = [{"image": data_uri(picture(page, token, shares), 0), "text": text}]
    budgets = sorted({budget for _, budget in page.kept})
    for method in ("sparsemm", "snapkv"):
        if (method, budgets[len(budgets) // 2] if budgets else 0) not in page.kept:
            continue
        budget = budgets[len(budgets) // 2]
        group = table.scores.shape[1] // page.kept[method, budget].shape[1]
        kept = page.kept[method, budget][best[0], best[1] // group][page.positions]
        text = f"{method}, B = {budget}: keeps {int(kept.sum())} of {len(kept)} visual tokens in this head"
        pictures.append({"image": data_uri(picture(page, token, shares, kept), 0), "text": text})
    return pictures


def picture(
    page: Reading, token: int, opacity: NDArray[np.float64], kept: NDArray[np.bool_] | None = None
) -> Image.Image:
    """Draws a page in grey under attention, orange on its grid and green on its thumbnail, with the word outlined.

    Args:
        page: page with N visual tokens.
        token: number of the token about to be said.
        opacity: (N,) attention, 1 for the strongest colour.
        kept: (N,) bool; tokens that are not kept fade.

    Returns:
        an RGB image.
    """
    image = page.record.image
    scale = SIDE / max(image.size)
    scale = float(np.ceil(scale)) if scale > 1 else scale  # small pages keep their pixels
    size = (round(scale * image.width), round(scale * image.height))
    grey = image.convert("L").resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)
    pixels = np.asarray(grey.convert("RGB"), dtype=np.float32).copy()
    for cell, (x0, y0, x1, y1) in enumerate((scale * page.rectangles).round().astype(int)):
        part, coarse = pixels[y0:y1, x0:x1], bool(page.coarse[cell])
        colour = np.array(ImageColor.getrgb(THUMBNAIL if coarse else GRID), dtype=np.float32)
        part += STRONGEST * float(opacity[cell]) * (colour - part)
        if kept is not None and not kept[cell] and not coarse:
            part += VEIL * (255 - part)
    drawn = Image.fromarray(pixels.round().astype(np.uint8))
    ImageDraw.Draw(drawn).rectangle([scale * edge for edge in _word(page, token).box], outline=WORD, width=3)
    return drawn


def _word(page: Reading, token: int) -> Any:
    entry = page.tokens[token].entry
    assert entry is not None
    return page.record.entries[entry]


def _caption(page: Reading, token: int, head: Head, ranked: Sequence[Head]) -> str:
    layer, number, share = head
    on_page, on_thumbnail = page.sums[layer, number, token]
    rank = f" (rank {ranked.index(head) + 1})" if share > 0 else ""
    thumbnail = f", {on_thumbnail:.0%} thumbnail" if page.coarse.any() else ""
    return f"layer {layer}, head {number}{rank}: {share:.1%} of the score, attention: {on_page:.0%} page{thumbnail}"
