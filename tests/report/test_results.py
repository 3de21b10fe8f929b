"""Tables are checked when they are read."""

from __future__ import annotations

import csv
import json

import pytest

from sparsemm.errors import DataError, ScoreTableError
from sparsemm.params import load_params
from sparsemm.report.charts import accuracy as accuracy_chart
from sparsemm.report.figures import accuracy as accuracy_figure
from sparsemm.report.findings import difference, verdicts
from sparsemm.report.results import read_results

PARAMS = """
models: {m: {checkpoint: ckpt, family: qwen2_vl, note: a note}}
datasets:
  c: {source: synthetic, split: calibration, samples: 4}
  e: {source: synthetic, split: evaluation, samples: 4}
chase: {dataset: c}
allocate: {budgets: [8], window: 4}
evaluate: {dataset: e, samples: 4, methods: [full, sparsemm]}
profile: {methods: [full], budget: 8, lengths: [128]}
"""


@pytest.fixture
def place(tmp_path, crafted):
    """A folder with the tables of one model, and a function that writes and reads them."""
    (tmp_path / "params.yaml").write_text(PARAMS, encoding="utf-8")
    crafted.table().save(tmp_path / "artifacts/scores/m.safetensors")

    def read(evaluation=None, profile=None):
        for name, rows in (("evaluate", evaluation), ("profile", profile)):
            if rows is not None:
                path = tmp_path / "artifacts" / name / "m.csv"
                path.parent.mkdir(exist_ok=True)
                with open(path, "w", newline="", encoding="utf-8") as handle:
                    writer = csv.DictWriter(handle, list(rows[0]))
                    writer.writeheader()
                    writer.writerows(rows)
        return read_results(load_params(tmp_path / "params.yaml"), "m", tmp_path)

    return tmp_path, read


def test_all_is_read(place, crafted):
    folder, read = place
    (folder / "ckpt").mkdir()
    (folder / "ckpt/card.json").write_text(json.dumps({"held_out": {}}), encoding="utf-8")
    result = read([crafted.row("full", "", 0.9), crafted.row("sparsemm", "8", 0.5)], [crafted.timing()])
    assert result.methods() == ["full", "sparsemm"] and result.budgets() == ["8"] and result.tasks() == ["read"]
    assert result.label == "m (a note)" and result.name == "m *" and result.card == {"held_out": {}}
    assert len(result.profile) == 1


def test_no_evaluation_yet_is_fine_but_no_scores_is_not(place):
    folder, read = place
    result = read()
    assert result.evaluation == [] and result.profile == [] and result.card == {}
    (folder / "artifacts/scores/m.safetensors").unlink()
    with pytest.raises(ScoreTableError, match="chase stage"):
        read()


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("value", ""),
        ("value", "nan"),
        ("value", "inf"),
        ("value", "much"),
        ("bytes", "1.5"),
        ("n", "0"),
        ("kept_slots", "-1"),
        ("budget", "8.5"),
        ("diff_full_ci_low", "x"),
        ("diff_full_ci_low", ""),
        ("diff_full_ci_low", "0.5"),
        ("ci_low", "0.99"),
        ("model", "another"),
    ],
)
def test_a_bad_cell_is_refused_with_its_line(place, crafted, column, value):
    rows = [crafted.row("full", "", 0.9), crafted.row("sparsemm", "8", 0.5) | {column: value}]
    with pytest.raises(DataError, match="m.csv, line 3: .*run its stage again"):
        place[1](rows)


@pytest.mark.parametrize(("column", "value"), [("decode_ms_per_token", "0"), ("full_bytes", "0"), ("kept_bytes", "-1")])
def test_a_bad_timing_is_refused(place, crafted, column, value):
    with pytest.raises(DataError, match=f"line 2: {column}"):
        place[1](profile=[crafted.timing() | {column: value}])


def test_a_missing_column_and_a_short_line_are_refused(place, crafted):
    folder, read = place
    row = crafted.row("full", "", 0.9)
    del row["diff_full_ci_high"]
    with pytest.raises(DataError, match="diff_full_ci_high"):
        read([row])
    read([crafted.row("full", "", 0.9)])
    path = folder / "artifacts/evaluate/m.csv"
    path.write_text(path.read_text() + "m,read\n")
    with pytest.raises(DataError, match="line 3"):
        read()


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"\x00"])
def test_what_is_not_csv_is_refused(place, content):
    folder, read = place
    path = folder / "artifacts/evaluate/m.csv"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(DataError, match="m.csv"):
        read()


def test_what_is_not_json_is_refused(place):
    folder, read = place
    (folder / "ckpt").mkdir()
    (folder / "ckpt/card.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="card.json"):
        read()


@pytest.mark.parametrize(
    ("more", "kept"), [({"n": "1"}, False), ({"n": "5", "pages": "1"}, False), ({"n": "5", "pages": "2"}, True)]
)
def test_one_page_has_no_interval_and_no_verdict(place, crafted, more, kept):
    result = place[1]([crafted.row("full", "", 0.9) | more, crafted.row("snapkv", "8", 0.5, (-0.2, -0.1)) | more])
    assert [bool(row["ci_low"]) for row in result.evaluation] == [kept, kept]
    assert bool(verdicts(result, "read", "snapkv")) == kept
    snapkv = result.evaluation[1]
    assert difference(snapkv, "diff_vs_sparsemm") == ("-0.150 [-0.200, -0.100]" if kept else "-0.150")
    charts, pictures = accuracy_chart(result, "read"), accuracy_figure(result, "read")
    crafted.drawable(charts)
    assert ("[0.400, 0.600]" in json.dumps(charts)) == kept and len(pictures) > 1000


@pytest.mark.parametrize("column", ["pages", "draws"])
def test_later_columns_are_checked_too(place, crafted, column):
    with pytest.raises(DataError, match=f"line 2: {column} is 'many'"):
        place[1]([crafted.row("full", "", 0.9) | {column: "many"}])
