"""Crafted pages as a model's heads see them, and a crafted score table."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from sparsemm.datasets.records import Entry, Record
from sparsemm.explorer.reading import Reading, Token, to_levels
from sparsemm.scores import ScoreTable

HEADER = {"model": "m", "revision": None, "fingerprint": "f", "num_kv_heads": 4, "tokens": 10}


def table(share_of_first=0.5, samples=4):
    """5 layers x 4 heads; the first head holds `share_of_first`, the others the rest evenly."""
    per_sample = np.full((samples, 5, 4), (1 - share_of_first) / 19)
    per_sample[:, 0, 0] = share_of_first
    hits = np.zeros((5, 4), dtype=np.int64)
    hits[0, 0] = 9
    return ScoreTable.from_samples(per_sample, hits, HEADER)


def reading(name="page-1", size=(60, 40), seed=0, coarse=True):
    """A page of two words, 6 x 4 cells (and a thumbnail of 2 x 2), five answer tokens, 5 layers x 4 heads."""
    width, height = size
    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).text((4, 4), "zip", "black")
    entries = (Entry("zip", (2, 2, 24, 15), "word"), Entry("far", (32, 22, 56, 36), "word"))
    edges = [
        (x * width / 6, y * height / 4, (x + 1) * width / 6, (y + 1) * height / 4) for y in range(4) for x in range(6)
    ]
    small = [
        (x * width / 2, y * height / 2, (x + 1) * width / 2, (y + 1) * height / 2) for y in range(2) for x in range(2)
    ]
    cells = edges + small if coarse else edges
    tokens = [Token("z", 0, [0, 1, 6, 7]), Token("ip", 0, [0, 1, 6, 7]), Token(" ", None, [])]
    tokens += [Token("fa", 1, [15, 16, 17, 21, 22, 23]), Token("r<", 1, [15, 16, 17, 21, 22, 23])]
    rng = np.random.default_rng(seed)
    attention = rng.dirichlet(np.full(len(cells) + 8, 0.2), (5, 4, len(tokens))).astype(np.float32)
    peak = attention.argmax(-1)
    on_page = attention[..., : len(cells)]
    thumbnail = np.arange(len(cells)) >= 24
    prompt = len(cells) + 6
    return Reading(
        record=Record(name, image, entries, "s", "l"),
        tokens=tokens,
        left_out=3,
        answer="zip far<",
        rectangles=np.array(cells),
        coarse=thumbnail,
        positions=2 + np.arange(len(cells)),
        levels=to_levels(on_page),
        sums=np.stack([on_page[..., ~thumbnail].sum(-1), on_page[..., thumbnail].sum(-1)], -1),
        peak=np.where(peak < len(cells), peak, -1),
        prompt=prompt,
        kept={
            (method, budget): rng.random((5, 4, prompt)) < budget / prompt
            for method in ("sparsemm", "snapkv")
            for budget in (8, 16)
        },
    )
