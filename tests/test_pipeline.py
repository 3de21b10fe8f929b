"""All stages of one trained checkpoint through the command line, stopped and resumed, twice to the same bytes."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from plotly.offline import get_plotlyjs

from sparsemm.cli import main
from sparsemm.datasets.records import read_records
from sparsemm.errors import AlignError, BudgetError, DataError, ScoreTableError
from sparsemm.files import sha256_file
from sparsemm.params import load_params
from sparsemm.report.stage import PAPER
from sparsemm.scores import ScoreTable

ROOT = Path(__file__).parent.parent
KEY = "tiny-llava-next-vicuna"
STAGES = ("align", "chase", "allocate", "evaluate")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with small params, after every stage has run once."""
    folder = tmp_path_factory.mktemp("pipeline")
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    entry = params["models"][KEY]
    entry["checkpoint"] = str(ROOT / entry["checkpoint"])
    params["models"] = {KEY: entry}
    for dataset in params["datasets"].values():
        dataset["samples"] = 10
    params["chase"] |= {"batch_size": 3, "shard_size": 4}
    params["allocate"]["budgets"] = [8, 24]
    params["evaluate"] |= {"samples": 6, "batch_size": 4, "methods": ["full", "sparsemm", "snapkv"], "bootstrap": 100}
    rho = {"samples": 4, "tasks": ["qa"], "values": [0.5], "budget": 8}
    params["studies"] = {"derived": {"cost": {}}, "measured": {"rho": rho}}
    params["tune"] |= {
        "samples": 6,
        "first": 2,
        "tasks": ["qa"],
        "budgets": [8],
        "rhos": [0.1],
        "powers": [1.0],
        "selectors": ["peak"],
    }
    params["profile"] |= {"lengths": [160], "new_tokens": 3, "repetitions": 1, "methods": ["full", "snapkv"]}
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    for dataset in params["datasets"]:
        assert run(folder, "download", dataset) == 0
    for stage in (*STAGES, "explore", "profile"):
        assert run(folder, stage, KEY) == 0
    for name in ("rho", "cost"):
        assert run(folder, "study", name, KEY) == 0
    return folder


def run(folder, *arguments):
    return main(["--params", str(folder / "params.yaml"), "--root", str(folder), *arguments])


def hashes(folder):
    files = (folder / "artifacts").rglob("*")
    return {str(f.relative_to(folder)): sha256_file(f) for f in files if f.is_file() and "profile" not in f.parts}


def test_running_again_gives_the_same_bytes(place):
    before = hashes(place)
    assert len(before) >= 10 and not any("work" in name for name in before)
    for stage in STAGES:
        assert run(place, stage, KEY) == 0
    assert hashes(place) == before


@pytest.mark.parametrize(
    ("stage", "module", "function", "calls"),
    [
        ("align", "sparsemm.align.stage", "greedy_answers", 2),
        ("chase", "sparsemm.chase.scoring", "chase_batch", 2),
        ("evaluate", "sparsemm.evaluate.evaluator", "make_batch", 2),
        ("evaluate", "sparsemm.evaluate.stage", "write_results", 0),
    ],
)
def test_a_killed_stage_goes_on_and_ends_in_the_same_bytes(place, monkeypatch, stage, module, function, calls):
    import importlib

    before = hashes(place)
    owner = importlib.import_module(module)
    real = getattr(owner, function)
    seen = []

    def dies(*arguments, **options):
        if len(seen) >= calls:
            raise KeyboardInterrupt
        seen.append(1)
        return real(*arguments, **options)

    monkeypatch.setattr(owner, function, dies)
    monkeypatch.setattr("sparsemm.chase.scoring.MOST_PADDING", 1.0)  # a shard of 4 samples has two batches
    assert run(place, stage, KEY) == 130
    assert {k: v for k, v in hashes(place).items() if "work" not in k} == before  # nothing half-written
    monkeypatch.setattr(owner, function, real)
    done = [f for f in (place / "artifacts" / "work").rglob("*") if f.is_file()]
    assert done  # something was kept to go on from
    if function == "write_results":
        monkeypatch.setattr("sparsemm.evaluate.evaluator.load_model", lambda *_: pytest.fail("there is nothing to ask"))
    assert run(place, stage, KEY) == 0
    assert hashes(place) == before


def test_the_model_reads_and_its_heads_look(place):
    """Trained weights: most words are found, some head looks at most of them, and the table says whose it is."""
    aligned = json.loads((place / "artifacts/align" / f"{KEY}.json").read_text())
    assert aligned["share_found"] > 0.8
    table = ScoreTable.load(place / "artifacts/scores" / f"{KEY}.safetensors")
    assert table.hits.max() > 0.5 * table.header["tokens"]
    assert table.header["model"].endswith(KEY) and table.header["samples"] == 10


def test_budgets_are_exact_and_follow_the_scores(place):
    value = json.loads((place / "artifacts/budgets" / f"{KEY}.json").read_text())
    table = ScoreTable.load(place / "artifacts/scores" / f"{KEY}.safetensors")
    scores = table.to_kv(table.header["num_kv_heads"])
    for budget, rows in value["slots"].items():
        slots = np.array(rows)
        assert slots.sum() == int(budget) * slots.size and slots.min() >= value["window"]
    assert slots.ravel()[scores.ravel().argmax()] == slots.max()


def test_rows_of_the_evaluation(place):
    with open(place / "artifacts/evaluate" / f"{KEY}.csv", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == 2 * (1 + 2 * 2)
    for row in rows:
        assert float(row["ci_low"]) <= float(row["value"]) <= float(row["ci_high"]) and row["n"] == "6"
        if row["method"] != "full":
            assert float(row["kept_slots"]) == float(row["budget"])
            assert int(row["bytes"]) == int(row["budget"]) * 96 * 2 * 8 * 4  # layers x heads, K and V, head_dim, fp32
            assert row["diff_vs_full"] != "" and (row["diff_vs_sparsemm"] == "") == (row["method"] == "sparsemm")
    read = next(row for row in rows if row["method"] == "full" and row["task"] == "read")
    assert float(read["value"]) > 0.8


def test_a_limited_evaluation_leaves_the_results_alone(place, capsys):
    before = hashes(place)
    assert run(place, "evaluate", KEY, "--limit", "2") == 0
    limited = place / "artifacts" / "work" / "limited"
    with open(limited / f"{KEY}.csv", encoding="utf-8") as handle:
        assert {row["n"] for row in csv.DictReader(handle)} == {"2"}
    shutil.rmtree(place / "artifacts" / "work")
    assert hashes(place) == before and run(place, "evaluate", KEY, "--limit", "0") == 1
    assert "--limit: 0 documents" in capsys.readouterr().err


def test_rows_of_the_profile(place):
    with open(place / "artifacts/profile" / f"{KEY}.csv", encoding="utf-8") as handle:
        rows = {row["method"]: row for row in csv.DictReader(handle)}
    assert set(rows) == {"transformers", "full", "snapkv"}
    assert rows["transformers"]["decode_ratio_to_full"] == "1.0"
    assert rows["full"]["kept_bytes"] == rows["full"]["full_bytes"] == str((160 + 2) * 96 * 2 * 8 * 4)
    budget = load_params(place / "params.yaml").profile.budget
    assert rows["snapkv"]["kept_bytes"] == str((budget + 2) * 96 * 2 * 8 * 4)


def test_splits_do_not_overlap(place):
    one, other = (
        read_records(place / "artifacts/datasets" / f"{name}.parquet") for name in ("calibration", "evaluation")
    )
    assert {r.image.tobytes() for r in one}.isdisjoint(r.image.tobytes() for r in other)


@pytest.mark.parametrize(
    ("missing", "stage", "error", "hint"),
    [
        ("datasets/calibration.parquet", "align", DataError, "download"),
        (f"align/{KEY}.parquet", "chase", AlignError, "align stage"),
        (f"scores/{KEY}.safetensors", "allocate", ScoreTableError, "chase stage"),
        (f"budgets/{KEY}.json", "evaluate", BudgetError, "allocate stage"),
    ],
)
def test_a_missing_input_names_the_stage_that_makes_it(place, capsys, missing, stage, error, hint):
    path = place / "artifacts" / missing
    away = path.with_name("away")
    os.rename(path, away)
    try:
        assert run(place, stage, KEY) == 1
    finally:
        os.rename(away, path)
    assert hint in capsys.readouterr().err


def test_the_report_is_one_file_and_does_not_change(place):
    assert run(place, "report") == 0
    folder = place / "artifacts" / "report"
    first = {path.name: sha256_file(path) for path in folder.rglob("*.*")}
    text = (folder / "index.html").read_text(encoding="utf-8")
    assert {"accuracy.csv", "heads.csv"} <= first.keys()
    own = text.replace(get_plotlyjs(), "").replace("http-equiv", "").replace(PAPER, "")
    assert "http" not in own and len(own) < len(text) < 10_000_000
    assert ">snapkv, B = 24</th>" in text and ">snapkv, read, B = 24, against full</th>" in text
    assert 'id="explorer-data"' in text and "is not in the explorer" not in text
    assert run(place, "report") == 0
    assert {path.name: sha256_file(path) for path in folder.rglob("*.*")} == first


def test_a_report_without_scores_names_the_stage(place, capsys):
    path = place / "artifacts" / "scores" / f"{KEY}.csv"
    path.rename(path.with_name("away"))
    try:
        assert run(place, "report") == 1
    finally:
        path.with_name("away").rename(path)
    assert "run the chase stage first" in capsys.readouterr().err


def test_scores_commands(place, capsys, tmp_path):
    table = str(place / "artifacts/scores" / f"{KEY}.safetensors")
    assert run(place, "scores", "show", table) == 0
    assert run(place, "scores", "diff", table, table) == 0
    assert run(place, "scores", "export", table, str(tmp_path / "p.json")) == 0
    assert run(place, "scores", "import", str(tmp_path / "p.json"), KEY, str(tmp_path / "again.safetensors")) == 0
    again = ScoreTable.load(tmp_path / "again.safetensors")
    assert np.allclose(again.scores, ScoreTable.load(table).scores)
    assert again.header["fingerprint"] == ScoreTable.load(table).header["fingerprint"]
    assert "1.0" in capsys.readouterr().out


def test_unknown_keys_are_refused(place, capsys):
    assert run(place, "chase", "nobody") == 1 and run(place, "download", "nothing") == 1
    error = capsys.readouterr().err
    assert f"known: {KEY}" in error and "known: calibration, evaluation" in error
