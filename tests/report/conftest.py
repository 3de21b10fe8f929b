"""Crafted tables: what the stages write, with the numbers a test wants."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import plotly.graph_objects
import pytest
from PIL import Image, ImageDraw

from sparsemm.datasets.records import Entry, Record
from sparsemm.report.looking import Looking, Token, to_levels
from sparsemm.report.results import Results
from sparsemm.scores import ScoreTable

HEADER = {"model": "m", "revision": None, "fingerprint": "f", "num_kv_heads": 4, "tokens": 10}
VOID = {"meta", "img", "br"}


def table(share_of_first=0.5, samples=4):
    """5 layers x 4 heads; the first head holds `share_of_first`, the others the rest evenly."""
    per_sample = np.full((samples, 5, 4), (1 - share_of_first) / 19)
    per_sample[:, 0, 0] = share_of_first
    hits = np.zeros((5, 4), dtype=np.int64)
    hits[0, 0] = 9
    return ScoreTable.from_samples(per_sample, hits, HEADER)


def row(method, budget, value, against=(0.0, 0.0), full=(0.0, 0.0), task="read", kept=None):
    """A row of the evaluation; `against` is the interval of method minus sparsemm, `full` of method minus full."""
    mine, whole = method == "sparsemm", method == "full"
    return {
        "model": "m",
        "task": task,
        "method": method,
        "budget": budget,
        "kept_slots": str(kept or budget or "80"),
        "bytes": "1024",
        "metric": "word_accuracy",
        "value": str(value),
        "n": "9",
        "ci_low": str(value - 0.1),
        "ci_high": str(value + 0.1),
        "diff_vs_sparsemm": "" if mine or whole else str(sum(against) / 2),
        "diff_ci_low": "" if mine or whole else str(against[0]),
        "diff_ci_high": "" if mine or whole else str(against[1]),
        "diff_vs_full": "" if whole else str(sum(full) / 2),
        "diff_full_ci_low": "" if whole else str(full[0]),
        "diff_full_ci_high": "" if whole else str(full[1]),
    }


def timing(method="sparsemm", length=128, ms=2.0, ratio=1.0, kept=25, full=100):
    """A row of the profile."""
    return {
        "model": "m",
        "method": method,
        "budget": "" if method in ("full", "transformers") else "16",
        "prompt_length": str(length),
        "batch_size": "1",
        "prefill_ms": "5.0",
        "compression_ms": "0.1",
        "compression_share": "0.02",
        "decode_ms_per_token": str(ms),
        "decode_ratio_to_full": str(ratio),
        "tokens_per_second": str(1000 / ms),
        "roofline_ms": str(ms / 2),
        "peak_bytes": str(10 * full),
        "kept_bytes": str(kept),
        "slab_bytes": str(kept),
        "full_bytes": str(full),
    }


def results(rows=(), profile=(), share=0.5, key="m", note="", scores=None):
    """Everything the report knows of a model."""
    return Results(key, note, {}, {}, scores or table(share), list(rows), list(profile), {"device": "d"})


def looking(name="page-1", size=(60, 40), seed=0, coarse=True):
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
    return Looking(
        record=Record(name, image, entries, "s", "l"),
        tokens=tokens,
        left_out=3,
        said="zip far<",
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


def plain(value):
    """A chart with the page's colours looked up, as the page does before plotly sees them."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [plain(one) for one in value]
    return "black" if isinstance(value, str) and value.startswith("var(--") else value


def drawable(chart):
    """Raises where a chart is not JSON, or has a word that plotly does not know."""
    json.dumps(chart, allow_nan=False)
    plotly.graph_objects.Figure(plain(chart))


class Checker(HTMLParser):
    """Reads a page: its tags and attributes, its text; every tag must be closed."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.text, self.scripts = [], [], "", []

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("script", "style"):
            self.scripts.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("script", "style"):
            self.scripts[-1] += data
        else:
            self.text += data

    def all(self, name):
        """Attributes of every tag of this name."""
        return [attributes for tag, attributes in self.seen if tag == name]


def checked(text):
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert checker.open == []
    return checker


@pytest.fixture(scope="session")
def crafted():
    return SimpleNamespace(
        table=table, row=row, timing=timing, results=results, looking=looking, checked=checked, drawable=drawable
    )
