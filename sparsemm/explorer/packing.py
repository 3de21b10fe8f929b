"""Packs a page of the explorer into JSON values that are small enough for the report."""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsemm.explorer.pictures import data_uri
from sparsemm.explorer.reading import Reading
from sparsemm.scores import ScoreTable

ROOM = 350_000  # characters for one page, so that ten pages and the chart library stay below 10 MB
BEST_RATIO = 12  # attention never compresses better, so heads that cannot fit are not compressed at all


def shown_heads(table: ScoreTable, count: int) -> NDArray[np.int64]:
    """Returns (at most `count`, 2) int64 layers and heads: three quarters are the best, the rest an even sample.

    Raises ScoreTableError if no head has any score.
    """
    ranked = np.array([head[:2] for head in table.top_heads(table.scores.size)], dtype=np.int64)
    if count >= len(ranked):
        return ranked
    best = -(-3 * count // 4)
    others = np.linspace(best, len(ranked) - 1, count - best).round().astype(np.int64)
    return ranked[np.concatenate([np.arange(best), others])]


def pack(page: Reading, table: ScoreTable, room: int = ROOM) -> dict[str, Any]:
    """Packs one page with all its heads or, if they do not fit, with the best heads and a sample of the others."""
    fixed = _fixed(page)
    room = max(room - len(json.dumps(fixed)), 0)
    tokens, cells = page.levels.shape[2:]
    one = tokens * (cells + 4) + len(page.kept) * -(-page.prompt // 8)  # bytes of a head before they are compressed
    count = min(table.scores.size, BEST_RATIO * room // max(one, 1))
    while True:
        heads = shown_heads(table, count)
        arrays = _arrays(page, heads)
        size = sum(len(text) for text in arrays.values())
        if size <= room or count == 0:
            return {**fixed, "heads": heads.tolist(), **arrays}
        count = int(count * min(room / size, 0.95))


def _fixed(page: Reading) -> dict[str, Any]:
    """Returns everything that does not depend on the number of heads."""
    width, height = page.record.image.size
    return {
        "id": page.record.id,
        "image": data_uri(page.record.image),
        "width": width,
        "height": height,
        "answer": page.answer,
        "leftOut": page.left_out,
        "prompt": page.prompt,
        "tokens": [_token(page, number) for number in range(len(page.tokens))],
        "cells": page.rectangles.round(3).tolist(),
        "grid": int((~page.coarse).sum()),
        "positions": page.positions.tolist(),
        "kept": [{"method": method, "budget": budget} for method, budget in page.kept],
    }


def _token(page: Reading, number: int) -> dict[str, Any]:
    token = page.tokens[number]
    entry = None if token.entry is None else page.record.entries[token.entry]
    return {
        "text": token.text,
        "word": entry and entry.text,
        "box": entry and [round(value, 2) for value in entry.box],
        "cells": token.cells,
    }


def _arrays(page: Reading, heads: NDArray[np.int64]) -> dict[str, str]:
    """Packs levels (M, T, N), sums (M, T, 2) in 255ths, peaks (M, T) int16 and kept (M, choices, S / 8) bits."""
    layer, head = heads[:, 0], heads[:, 1]
    kept = list(page.kept.values())
    bits = np.zeros((len(heads), 0, -(-page.prompt // 8)), dtype=np.uint8)
    if kept:
        group = page.levels.shape[1] // kept[0].shape[1]
        bits = np.packbits(np.stack([one[layer, head // group] for one in kept], axis=1), axis=-1)
    return {
        "levels": _text(page.levels[layer, head]),
        "sums": _text(np.rint(255 * page.sums[layer, head].clip(0, 1)).astype(np.uint8)),
        "peak": _text(page.peak[layer, head].astype("<i2")),
        "bits": _text(bits),
    }


def _text(array: NDArray[Any]) -> str:
    # mtime=0 makes the bytes the same for the same numbers.
    return base64.b64encode(gzip.compress(np.ascontiguousarray(array).tobytes(), 6, mtime=0)).decode("ascii")
