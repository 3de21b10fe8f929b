"""Tables of the evaluate stage: several draws of a random method count by their mean, page by page."""

from __future__ import annotations

import csv

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from sparsemm.evaluate.results import Outcome, write_results
from sparsemm.evaluate.stage import _draws
from sparsemm.evaluate.tasks import Scored
from sparsemm.params import parse_params
from sparsemm.studies.samples import read_samples
from tests.repository import ROOT


def outcome(values, pages=None):
    pages = range(len(values)) if pages is None else pages
    samples = [Scored(str(i), str(p), "said", "wanted", v) for i, (p, v) in enumerate(zip(pages, values, strict=True))]
    return Outcome(samples, [40] * len(values), 8, 4)


def test_draws_are_averaged_in_the_table_and_kept_apart_in_the_samples(tmp_path):
    given = parse_params((ROOT / "params.yaml").read_text(encoding="utf-8")).evaluate
    given = given.model_copy(update={"tasks": ("qa",), "bootstrap": 200})
    values = np.random.default_rng(0).integers(0, 2, (3, 8)).astype(float)
    outcomes = {
        ("qa", "sparsemm", 12): [outcome(values[0])],
        ("qa", "random", 12): [outcome(one) for one in values],
    }
    folder = tmp_path / "artifacts" / "evaluate"
    write_results(given, "m", outcomes, folder)
    with open(folder / "m.csv", newline="", encoding="utf-8") as handle:
        ours, random = csv.DictReader(handle)
    assert (ours["draws"], random["draws"]) == ("1", "3") and random["kept_slots"] == "10.0"
    assert float(random["value"]) == pytest.approx(values.mean(), abs=1e-6)
    assert float(random["diff_vs_sparsemm"]) == pytest.approx((values.mean(0) - values[0]).mean(), abs=1e-6)
    assert np.array_equal(read_samples(tmp_path, "m").values["qa", "random", 12], values)


def test_questions_about_one_image_do_not_make_an_interval_narrower(tmp_path):
    given = parse_params((ROOT / "params.yaml").read_text(encoding="utf-8")).evaluate
    given = given.model_copy(update={"tasks": ("qa",)})
    rng = np.random.default_rng(1)
    values = rng.integers(0, 2, 10).astype(float)
    widths = []
    for asked in (1, 9):  # the same answer to every question about an image
        pages = np.repeat(np.arange(10), asked)
        said = {("qa", "sparsemm", 12): [outcome(np.repeat(values, asked), pages)]}
        write_results(given, "m", said, tmp_path)
        with open(tmp_path / "m.csv", newline="", encoding="utf-8") as handle:
            (row,) = csv.DictReader(handle)
        assert (row["n"], row["pages"]) == (str(10 * asked), "10")
        widths.append((row["ci_low"], row["ci_high"]))
    assert widths[0] == widths[1]
    assert len({one["page"] for one in pq.read_table(tmp_path / "m.samples.parquet").to_pylist()}) == 10


def test_only_random_is_drawn_and_the_first_draw_is_the_one_of_before():
    assert _draws(("random", 12), 3) == [("random", 12), ("random.1", 12), ("random.2", 12)]
    assert _draws(("sparsemm", 12), 3) == [("sparsemm", 12)] and _draws(("random", 12), 1) == [("random", 12)]


def test_more_draws_do_not_forget_what_is_answered():
    value = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    from sparsemm.evaluate.stage import _identity

    names = []
    for seeds in (1, 3):
        value["evaluate"]["random_seeds"] = seeds
        params = parse_params(yaml.safe_dump(value))
        names.append(_identity(params, next(iter(params.models)), {}, []))
    assert names[0] == names[1]
