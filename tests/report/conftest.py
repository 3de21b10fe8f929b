"""Crafted tables: what the stages write, with the numbers a test wants."""

from __future__ import annotations

from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest

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


class Checker(HTMLParser):
    """Reads a page: its tags and attributes, its text; every tag must be closed."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.text = [], [], ""

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
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


@pytest.fixture
def crafted():
    return SimpleNamespace(table=table, row=row, timing=timing, results=results, checked=checked)
