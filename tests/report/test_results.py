"""Everything the page is made from is read once, typed, and refused where it is not what a stage writes."""

from __future__ import annotations

import csv
import json
import platform

import numpy as np
import pytest

from sparsemm.errors import DataError
from sparsemm.params import parse_params
from sparsemm.report.results import Accuracy, Machine, Shape, Timing, paper_points, read_results, read_shares
from sparsemm.studies.common.stage import write
from tests.report import crafted

ENTRY = "m: {checkpoint: ckpt, family: qwen2_vl, note: a note}"
PARAMS = crafted.PARAMS % ENTRY


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_scores(path, heads=None):
    heads = heads or crafted.heads()
    rows = [
        {"rank": n, "share": share, "cumulative": 1, "layer": layer, "head": head}
        for n, (layer, head, share) in enumerate(heads.ranked, start=1)
    ]
    write_rows(path, rows)


@pytest.fixture
def place(tmp_path):
    """A folder with the scores of one model."""
    write_scores(tmp_path / "artifacts/scores/m.csv")
    return tmp_path


def read(folder, text=PARAMS):
    return read_results(parse_params(text), folder)


def test_all_is_read(place):
    folder = place / "artifacts"
    (place / "ckpt").mkdir()
    held = {"one": {"word_accuracy": 0.9, "exact_match": 1}, "two": {"word_accuracy": "high"}, "pages_per_style": 3}
    (place / "ckpt/card.json").write_text(json.dumps({"held_out": held}))
    write_rows(folder / "evaluate/m.csv", [crafted.cells("full", None, 0.9), crafted.cells("sparsemm", 8, 0.5)])
    write_rows(folder / "profile/m.csv", [crafted.timing().model_dump()])
    (folder / "profile/m.json").write_text('{"device": "d", "threads": 2}')
    (folder / "scores/m.json").write_text('{"samples": 4, "split_half": null}')
    (folder / "align").mkdir()
    (folder / "align/m.json").write_text('{"share_found": 0.9}')
    (folder / "explorer").mkdir()
    (folder / "explorer/m.json").write_text('{"reason": "too large"}')
    write_scores(folder / "scores/also/m/e.csv")
    write([one.model_dump(exclude_none=True) for one in crafted.study_rows()], "curve", "m", place)
    more = "robustness: {e: {}}\nstudies: {derived: {curve: {}}}"
    results = read(place, PARAMS + more)
    (model,) = results.models
    assert (model.methods, model.budgets, model.tasks) == (["full", "sparsemm"], [8], ["read"])
    assert model.label == "m *" and model.small and list(model.held_out) == ["one"]
    assert model.machine.threads == 2 and model.heads.words_read == 0.9 and model.heads.metrics.split_half is None
    assert model.explorer["reason"] == "too large" and list(model.others) == ["e"] and results.evidence == []
    assert [one.name for one in results.studies] == ["curve"] and results.study("curve") == []


def test_what_a_method_refused_is_read_apart_from_what_was_measured(place):
    rows = [row | {"refused": ""} for row in (crafted.cells("full", None, 0.9), crafted.cells("sparsemm", 8, 0.5))]
    refused = dict.fromkeys(rows[0], "") | {"model": "m", "task": "read", "method": "fastv", "budget": 8}
    write_rows(place / "artifacts/evaluate/m.csv", [*rows, refused | {"refused": "2 whole layers do not fit"}])
    measured = [one.model_dump() for one in crafted.study_rows()]
    unlike = dict.fromkeys(measured[0], "") | {"model": "m", "study": "curve", "task": "read", "setting": "duo"}
    write_rows(
        place / "artifacts/studies/curve/m.csv",
        [*({**row, "refused": ""} for row in measured), unlike | {"level": 0.05, "refused": "too long"}],
    )
    results = read(place, PARAMS + "studies: {derived: {curve: {}}}")
    (model,) = results.models
    assert model.methods == ["full", "sparsemm"]
    assert model.refused == [("read", "fastv", "", "8", "2 whole layers do not fit")]
    (study,) = results.studies
    assert study.refused == {"m": [("read", "duo", "0.05", "", "too long")]}
    assert [model.refused[0].place, study.refused["m"][0].place] == ["B = 8", "level 0.05"]


def test_only_scores_must_be_there(place):
    (model,) = read(place).models
    assert model.accuracy == [] == model.timings and model.explorer == {} and not model.small
    (place / "artifacts/scores/m.csv").unlink()
    with pytest.raises(DataError, match="chase stage"):
        read(place)


def test_results_that_are_kept_of_other_models_are_read_too(place):
    write_scores(place / "artifacts/kept/heads.csv")
    write_rows(place / "artifacts/kept/evaluate.csv", [crafted.cells("full", None, 0.9, model="kept")])
    first, second = read(place).models
    assert (second.key, second.number, len(second.accuracy)) == ("kept", 1, 1) and second.note == ""
    assert [model.key for model in read(place).evidence] == ["kept"] and first.number == 0


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("value", ""),
        ("value", "inf"),
        ("bytes", 1.5),
        ("n", 0),
        ("kept_slots", -1),
        ("budget", 8.5),
        ("diff_full_ci_low", ""),
        ("diff_full_ci_low", 0.5),
        ("ci_low", 0.99),
        ("pages", "many"),
        ("draws", "many"),
        ("model", "another"),
    ],
)
def test_a_bad_cell_is_refused_with_its_line(place, column, value):
    rows = [crafted.cells("full", None, 0.9, pages=9, draws=1), crafted.cells("sparsemm", 8, 0.5, pages=9, draws=1)]
    write_rows(place / "artifacts/evaluate/m.csv", [rows[0], rows[1] | {column: value}])
    with pytest.raises(DataError, match="m.csv, line 3: .*run its stage again"):
        read(place)


@pytest.mark.parametrize(("column", "value"), [("decode_ms_per_token", 0), ("full_bytes", 0), ("kept_bytes", -1)])
def test_a_bad_timing_is_refused(place, column, value):
    write_rows(place / "artifacts/profile/m.csv", [crafted.timing().model_dump() | {column: value}])
    with pytest.raises(DataError, match=f"line 2: {column}"):
        read(place)


def test_scores_are_every_head_once(place):
    path = place / "artifacts/scores/m.csv"
    assert np.array_equal(read_shares(path), crafted.heads().shares)
    lines = path.read_text().splitlines(keepends=True)
    for text in (lines[:-1], [*lines, lines[1]], lines[:1]):
        path.write_text("".join(text))
        with pytest.raises(DataError, match="every head once"):
            read_shares(path)


def test_what_is_not_json_is_refused(place):
    (place / "ckpt").mkdir()
    (place / "ckpt/card.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="card.json"):
        read(place)


@pytest.mark.parametrize(("more", "known"), [({"n": 1}, False), ({"pages": 1}, False), ({"pages": 2}, True)])
def test_one_page_has_no_interval_and_no_verdict(more, known):
    row = crafted.row("snapkv", 8, 0.5, (-0.2, -0.1), (-0.4, -0.3), **more)
    assert (row.accuracy.low is not None) == (row.gain.verdict == "better") == known
    assert row.gain.value == pytest.approx(0.15) and (row.against_full.verdict == "worse") == known


def test_a_gain_is_sparsemm_minus_the_method():
    row = crafted.row("snapkv", 8, 0.5, (0.1, 0.3), (-0.4, -0.2))
    assert row.gain.verdict == "worse" and row.gain.text("+") == "-0.200 [-0.300, -0.100]"
    assert row.against_full.text("+") == "-0.300 [-0.400, -0.200]"
    assert crafted.row("sparsemm", 8, 0.5).gain is None and crafted.row("full", None, 0.5).against_full is None


def test_heads_know_their_concentration_and_how_far_they_agree():
    one, other = crafted.heads(0.5), crafted.heads(0.9)
    assert one.ranked[0] == (0, 0, 0.5) and len(one.ranked) == 20
    assert one.top_share(0.05) == 0.5 and one.top_share(1.0) == pytest.approx(1.0)
    assert one.correlation(other) == pytest.approx(1.0) and one.overlap(other, 0.05) == 1.0


def shape(name="vicuna-7b", device="a GPU", budget=256):
    rows = [crafted.timing("transformers", n) for n in (2048, 32768)]
    rows += [crafted.timing("sparsemm", n, budget=budget) for n in (2048, 32768)]
    return Shape(name, rows, Machine(device=device))


def test_the_papers_points_need_its_shape_length_budget_and_a_gpu():
    result = {(one.quantity, one.method, one.prompt_length) for one in paper_points(shape())}
    both = {("peak_gb", "transformers", 32768), ("peak_gb", "sparsemm", 32768)}
    assert result == both | {("decode_speedup", "sparsemm", 32768)}
    assert paper_points(shape(device=platform.machine())) == [] == paper_points(shape("mistral-7b"))
    assert {one.method for one in paper_points(shape(budget=16))} == {"transformers"}


def test_rows_are_what_the_stages_write():
    """The columns of today's evaluation and profile tables are the fields that are read."""
    from sparsemm.evaluate.stage import COLUMNS as EVALUATED
    from sparsemm.profiling.table import COLUMNS as PROFILED

    assert set(Accuracy.model_fields) <= set(EVALUATED) and set(Timing.model_fields) <= set(PROFILED)
