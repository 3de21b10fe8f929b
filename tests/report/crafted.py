"""Crafted tables: what the stages write, with the numbers a test wants; and a reader of pages."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import numpy as np
import plotly.graph_objects

from sparsemm.evaluate.rows import Arm, Outcome, tabulate
from sparsemm.report.results import Accuracy, ChaseMetrics, Heads, Machine, Model, Results, StudyResults, Timing
from sparsemm.studies import StudyRow

VOID = {"meta", "img", "br"}
RNG = np.random.default_rng(0)
BASE = RNG.random(60)
MODELS = "m: {checkpoint: nowhere/m, family: qwen2_vl}"
PARAMS = """
models: {%s}
datasets:
  c: {source: synthetic, split: calibration, samples: 4}
  e: {source: synthetic, split: evaluation, samples: 4}
chase: {dataset: c}
allocate: {budgets: [8], window: 4}
evaluate: {dataset: e, samples: 4, methods: [full, sparsemm]}
profile: {methods: [full], budget: 8, lengths: [128]}
"""


def heads(share_of_first=0.5, **metrics):
    """5 layers x 4 heads; the first head holds `share_of_first`, the others the rest evenly."""
    shares = np.full((5, 4), (1 - share_of_first) / 19)
    shares[0, 0] = share_of_first
    return Heads(shares, ChaseMetrics(samples=4, split_half=1.0, **metrics))


def cells(method, budget, value, against=(0.0, 0.0), full=(0.0, 0.0), task="read", **more):
    """Cells of a row of the evaluation; `against` is the interval of method minus sparsemm, `full` of minus full."""
    mine, whole = method == "sparsemm", method == "full"
    return {
        "model": "m",
        "task": task,
        "method": method,
        "budget": budget or "",
        "kept_slots": budget or 80,
        "bytes": 1024,
        "metric": "word_accuracy",
        "value": value,
        "n": 9,
        "ci_low": value - 0.1,
        "ci_high": value + 0.1,
        "diff_vs_sparsemm": "" if mine or whole else sum(against) / 2,
        "diff_ci_low": "" if mine or whole else against[0],
        "diff_ci_high": "" if mine or whole else against[1],
        "diff_vs_full": "" if whole else sum(full) / 2,
        "diff_full_ci_low": "" if whole else full[0],
        "diff_full_ci_high": "" if whole else full[1],
    } | more


def row(*arguments, **options):
    """A row of the evaluation; see `cells`."""
    return Accuracy.model_validate(cells(*arguments, **options))


def timing(method="sparsemm", length=128, ms=2.0, ratio=1.0, kept=25, full=100, **more):
    """A row of the profile."""
    values = {
        "model": "m",
        "method": method,
        "budget": "" if method in ("full", "transformers") else 16,
        "prompt_length": length,
        "prefill_ms": 5.0,
        "compression_share": 0.02,
        "decode_ms_per_token": ms,
        "decode_ratio_to_full": ratio,
        "tokens_per_second": 1000 / ms,
        "roofline_ms": ms / 2,
        "peak_bytes": 10 * full,
        "kept_bytes": kept,
        "full_bytes": full,
    }
    return Timing.model_validate(values | more)


def model(rows=(), timings=(), share=0.5, key="m", note="", number=0, **more):
    """Everything the report knows of a model."""
    given = {"heads": heads(share), "machine": Machine(device="d")} | more
    return Model(key=key, note=note, number=number, accuracy=list(rows), timings=list(timings), **given)


def evaluated(against=(-0.2, -0.1), **more):
    """A model with three rows at one budget, and timings."""
    rows = [row("full", None, 0.9), row("sparsemm", 8, 0.6, full=(-0.4, -0.2))]
    rows.append(row("snapkv", 8, 0.5, against, full=(-0.5, -0.3)))
    return model(rows, [timing(), timing("snapkv", ms=2.1)], **more)


def study_rows(name="curve", key="m", task="read", gain=0.2, **change):
    """Rows of a crafted study: sparsemm beats snapkv by `gain` at budget 12, and is as good at 24."""
    outcomes = {}
    for budget, more in ((12, gain), (24, 0.0)):
        outcomes[Arm(task, "", "snapkv", None, budget)] = Outcome(BASE, "accuracy")
        outcomes[Arm(task, "", "sparsemm", None, budget)] = Outcome(BASE + more, "accuracy")
    outcomes[Arm(task, "", "full")] = Outcome(BASE + 0.3, "accuracy")
    options = {"resamples": 100, "seed": 0, "precision": 0.05}
    made = tabulate({"model": key, "study": name}, outcomes, lambda arm: [arm._replace(setting="snapkv")], **options)
    return [StudyRow.model_validate(one | change) for one in made]


def studied(study, rows, name="curve"):
    """A study's results; rows of several models go under their keys."""
    by_key = {}
    for one in rows:
        by_key.setdefault(one.model, []).append(one)
    return StudyResults(name, study, by_key)


def results(*models, params=PARAMS, **more):
    """Everything that the page is made from."""
    from sparsemm.params import parse_params

    entries = ", ".join(
        f"{json.dumps(one.key)}: {{checkpoint: 'a/b', family: qwen2_vl}}" for one in models if one.key.isalnum()
    )
    return Results(parse_params(params % entries), list(models), **more)


def plain(value):
    """A chart with the page's colours looked up, as the page does before plotly sees them."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [plain(one) for one in value]
    return "black" if isinstance(value, str) and value.startswith("var(--") else value


def drawable(chart):
    """Raises where a chart is not JSON, or has a word that plotly does not know."""
    spec = chart if isinstance(chart, dict) else chart.spec()
    json.dumps(spec, allow_nan=False)
    for panel in plain(spec["panels"]):
        plotly.graph_objects.Figure({"data": panel["traces"], "layout": {"xaxis": panel["x"], "yaxis": panel["y"]}})


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
