"""The stage writes one page of bounded size and the ten tables of `dvc plots`; it runs no model."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sparsemm.errors import DataError
from sparsemm.params import parse_params
from sparsemm.report import stage
from sparsemm.studies.common.stage import write
from tests.explorer import pages
from tests.report import crafted
from tests.report.test_results import write_rows, write_scores

PARAMS = crafted.PARAMS % crafted.MODELS
ROOT = Path(__file__).parents[2]


def page(folder):
    return crafted.checked((folder / "artifacts/report/index.html").read_text(encoding="utf-8"))


def tables(folder):
    return {path.stem: path.read_text(encoding="utf-8") for path in (folder / "artifacts/report/plots").glob("*.csv")}


def test_scores_alone_make_a_page_and_all_tables(tmp_path):
    write_scores(tmp_path / "artifacts/scores/m.csv")
    stage.run(parse_params(PARAMS), tmp_path)
    assert {"found", "heads", "limits"} <= {one["id"] for one in page(tmp_path).all("section")}
    assert (tmp_path / "artifacts/report/index.html").stat().st_size < 10_000_000
    made = tables(tmp_path)
    assert (
        set(made) == set(stage.plots(crafted.results(crafted.model())))
        and made["accuracy"] == "panel,series,at,value,low,high\n"
    )
    assert len(made["heads"].splitlines()) == 1 + 2 * 20 + 2  # two panels of 20 heads, and the even spread


def test_the_tables_are_those_that_dvc_draws():
    drawn = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["plots"]
    paths = [path for one in drawn for path in one]
    assert len(paths) == 10  # a view, not an archive
    for document in ("docs/report.md", "docs/tutorials/report.md"):
        assert "ten charts" in (ROOT / document).read_text(encoding="utf-8")
    assert {Path(path).stem for path in paths} == set(stage.plots(crafted.results(crafted.model())))
    for one in drawn:
        (plot,) = one.values()
        assert (ROOT / plot["template"]).is_file() and {plot["x"], plot["y"]} <= set(stage.COLUMNS)


def test_everything_that_was_made_is_in_the_page_and_the_same_every_time(tmp_path):
    folder = tmp_path / "artifacts"
    write_scores(folder / "scores/m.csv")
    write_scores(folder / "scores/also/m/e.csv", crafted.heads(0.3))
    write_rows(folder / "evaluate/m.csv", [crafted.cells("full", None, 0.9), crafted.cells("sparsemm", 8, 0.5)])
    timed = crafted.timing("transformers", 2048).model_dump() | {"model": "vicuna-7b"}
    write_rows(folder / "profile/shapes/vicuna-7b.csv", [timed])
    write([one.model_dump(exclude_none=True) for one in crafted.study_rows()], "curve", "m", tmp_path)
    from sparsemm.explorer.stage import contents

    (folder / "explorer").mkdir()
    (folder / "explorer/m.json").write_text(json.dumps(contents([pages.reading()], pages.table())))
    asked = PARAMS.replace("[128]}", "[128], shapes: [vicuna-7b]}")
    params = parse_params(asked + "robustness: {e: {}}\nstudies: {derived: {curve: {}}}")
    stage.run(params, tmp_path)
    result = page(tmp_path)
    assert {"accuracy", "explorer", "cost"} <= {one["id"] for one in result.all("section")}
    assert "study-curve" in {one.get("id") for one in result.all("h3")} and "vicuna-7b" in result.text
    assert sum(one["src"].startswith("data:image/") for one in result.all("img")) == 3 + 6
    rows = list(csv.DictReader(tables(tmp_path)["accuracy"].splitlines()))
    assert [(row["series"], row["value"]) for row in rows] == [("full", "0.9"), ("sparsemm", "0.5")]
    before = (folder / "report/index.html").read_bytes(), tables(tmp_path)
    stage.run(params, tmp_path)
    assert ((folder / "report/index.html").read_bytes(), tables(tmp_path)) == before


def test_what_is_missing_is_said_and_nothing_is_written(tmp_path):
    with pytest.raises(DataError, match="no model"):
        stage.run(parse_params(crafted.PARAMS % ""), tmp_path)
    with pytest.raises(DataError, match="chase"):
        stage.run(parse_params(PARAMS), tmp_path)
    assert not (tmp_path / "artifacts").exists()


def test_the_footer_names_the_commit_only_inside_a_repository(tmp_path):
    assert stage.commit(tmp_path) == ""
    for command in (
        ["init", "-q"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x", "--allow-empty"],
    ):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    head = subprocess.run(["git", "-C", str(tmp_path), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    assert head.stdout.strip() in stage.commit(tmp_path)


def test_the_page_needs_no_model_and_no_matplotlib():
    code = (
        "import sys, sparsemm.report.stage\n"
        "wrong = {name for name in sys.modules if name.startswith(('matplotlib', 'sparsemm.explorer', 'dvc'))}\n"
        "assert not wrong, wrong"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
