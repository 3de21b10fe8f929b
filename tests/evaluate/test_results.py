"""Tables of the evaluate stage: several draws of a random method count by their mean, page by page."""

from __future__ import annotations

import csv
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from sparsemm.evaluate.rows import Arm, Outcome, over_seeds
from sparsemm.evaluate.stage import draws, make_evaluator, write_results
from sparsemm.evaluate.tasks import Scored
from sparsemm.params import parse_params
from sparsemm.statistics import page_numbers
from sparsemm.studies.common.evaluated import read_samples
from tests.evaluate.conftest import KEY
from tests.repository import ROOT


def outcome(values, pages=None):
    pages = range(len(values)) if pages is None else pages
    samples = [Scored(str(i), str(p), "said", "wanted", v) for i, (p, v) in enumerate(zip(pages, values, strict=True))]
    numbers = page_numbers([one.page for one in samples])
    return Outcome(np.array(values, dtype=np.float64), "exact_match", 10.0, 320.0, pages=numbers, samples=[samples])


def test_draws_are_averaged_in_the_table_and_kept_apart_in_the_samples(tmp_path):
    given = parse_params((ROOT / "params.yaml").read_text(encoding="utf-8")).evaluate
    given = given.model_copy(update={"tasks": ("qa",), "bootstrap": 200})
    values = np.random.default_rng(0).integers(0, 2, (3, 8)).astype(float)
    outcomes = {
        Arm("qa", "", "sparsemm", None, 12): outcome(values[0]),
        Arm("qa", "", "random", None, 12): over_seeds(outcome(one) for one in values),
    }
    folder = tmp_path / "artifacts" / "evaluate"
    write_results(given, "m", outcomes, folder, {Arm("qa", "", "duo", None, 12): "too long"})
    with open(folder / "m.csv", newline="", encoding="utf-8") as handle:
        ours, random, refused = csv.DictReader(handle)
    assert [refused[name] for name in ("method", "budget", "refused", "value")] == ["duo", "12", "too long", ""]
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
        outcomes = {Arm("qa", "", "sparsemm", None, 12): outcome(np.repeat(values, asked), pages)}
        write_results(given, "m", outcomes, tmp_path, {})
        with open(tmp_path / "m.csv", newline="", encoding="utf-8") as handle:
            (row,) = csv.DictReader(handle)
        assert (row["n"], row["pages"]) == (str(10 * asked), "10")
        widths.append((row["ci_low"], row["ci_high"]))
    assert widths[0] == widths[1]
    assert len({one["page"] for one in pq.read_table(tmp_path / "m.samples.parquet").to_pylist()}) == 10


def test_only_random_is_drawn():
    given = parse_params((ROOT / "params.yaml").read_text(encoding="utf-8")).evaluate
    assert given.random_seeds == 3
    assert {method: draws(method, given) for method in ("full", "sparsemm", "random")} == {
        "full": 1,
        "sparsemm": 1,
        "random": 3,
    }


def test_more_draws_do_not_forget_what_is_answered(tmp_path, table):
    value = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    scores = tmp_path / "artifacts" / "scores"
    scores.mkdir(parents=True)
    shutil.copy(table, scores / f"{KEY}.safetensors")
    (tmp_path / "artifacts" / "datasets").mkdir()
    (tmp_path / "artifacts" / "datasets" / "evaluation.parquet").write_bytes(b"pages")
    folders = []
    for change in ({}, {"random_seeds": 1, "bootstrap": 9, "tasks": ["qa"]}, {"max_new_tokens": 9}):
        params = parse_params(yaml.safe_dump(value | {"evaluate": value["evaluate"] | change}))
        folders.append(make_evaluator(params, KEY, tmp_path, {"window": 4}, {}).store.folder)
    assert folders[0] == folders[1] != folders[2]
