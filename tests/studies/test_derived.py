"""Studies of what other stages wrote: curves, answer lengths, costs."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

from sparsemm.errors import DataError
from sparsemm.params import parse_params
from sparsemm.studies.common.evaluated import Evaluated, read_samples
from sparsemm.studies.common.stage import run
from sparsemm.studies.length import by_length
from tests.repository import ROOT
from tests.studies.crafted import write_csv, write_samples

VALUES = {
    ("read", "full", None): [1.0, 0.9, 1.0, 0.8],
    ("read", "sparsemm", 12): [0.2, 0.1, 0.4, 0.3],
    ("read", "sparsemm", 24): [0.6, 0.5, 0.6, 0.7],
    ("read", "random", 12): [[0.0, 0.1, 0.2, 0.3], [0.2, 0.1, 0.0, 0.1]],
    ("read", "random", 24): [[0.4, 0.1, 0.2, 0.3], [0.2, 0.1, 0.0, 0.3]],
}
# Every page twice: fewer than six that differ are no finding.
VALUES = {way: [one * 2 for one in v] if isinstance(v[0], list) else v * 2 for way, v in VALUES.items()}


@pytest.fixture
def params():
    given = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    given["models"] = {"m": {"checkpoint": "a/m", "family": "qwen2_vl"}}
    given["studies"] = {"derived": {"curve": {}, "length": {"groups": 2}, "cost": {}}}
    given["allocate"]["budgets"], given["profile"]["budget"] = [12, 24], 24
    return parse_params(yaml.safe_dump(given))


def read(root, name):
    import csv

    with open(root / "artifacts" / "studies" / name / "m.csv", newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def one(rows, **wanted):
    (row,) = [row for row in rows if all(row[k] == v for k, v in wanted.items())]
    return row


def test_areas_and_draws_of_a_curve(params, tmp_path):
    write_samples(tmp_path, VALUES, answers=("ab", "abcd"))
    run(params, "curve", "m", tmp_path)
    rows = read(tmp_path, "curve")
    area = one(rows, condition="area over log2 B", setting="sparsemm", against="full")
    assert float(area["value"]) == pytest.approx((0.25 + 0.6) / 2) and area["verdict"] == "worse"
    full = one(rows, condition="area over log2 B", setting="full")
    assert float(full["value"]) == pytest.approx(0.925) and full["verdict"] == ""
    drawn = one(rows, setting="random", budget="24", against="full")
    assert drawn["seeds"] == "2" and float(drawn["spread"]) == pytest.approx(0.1)
    assert float(drawn["value"]) == pytest.approx(0.2) and drawn["verdict"] == "worse"
    ours = one(rows, setting="sparsemm", budget="24", against="random")
    assert float(ours["diff"]) == pytest.approx(0.4) and ours["verdict"] == "better"
    assert drawn["kept_slots"] == "24.5" and drawn["bytes"] == "1536"


def test_methods_at_other_budgets_have_no_area_to_compare(params, tmp_path):
    write_samples(tmp_path, {k: v for k, v in VALUES.items() if k != ("read", "random", 12)})
    run(params, "curve", "m", tmp_path)  # one budget: the value there
    assert float(one(read(tmp_path, "curve"), condition="area over log2 B", setting="random", against="full")["value"])


def test_answers_are_grouped_by_length(params, tmp_path):
    write_samples(tmp_path, VALUES, answers=("ab", "abcd"))
    run(params, "length", "m", tmp_path)
    rows = read(tmp_path, "length")
    assert {row["condition"] for row in rows} == {"2 characters", "4 characters"}
    short = one(rows, condition="2 characters", setting="sparsemm", against="full")
    assert float(short["value"]) == pytest.approx(np.mean([0.2, 0.4, 0.6, 0.6])) and short["n"] == "4"


def test_groups_are_about_as_large_and_equal_lengths_stay_together():
    answers = ["x" * n for n in (1, 2, 2, 2, 5, 9, 9, 3)]
    result = by_length(answers, 3)
    assert sorted(np.concatenate(list(result.values()))) == list(range(8))
    for inside in result.values():
        lengths = {len(answers[i]) for i in inside}
        assert all(len(a) not in lengths for i, a in enumerate(answers) if i not in inside)
    assert list(by_length(["ab"] * 5, 3)) == ["2 characters"]


PROFILE = [
    {
        "method": method,
        "budget": budget,
        "prompt_length": 128,
        "decode_ms_per_token": 2.5,
        "decode_ratio_to_full": 0.8,
        "kept_bytes": 99,
    }
    for method, budget in (("transformers", ""), ("full", ""), ("sparsemm", 24))
]


def test_accuracy_and_latency_meet_at_the_profiled_budget(params, tmp_path):
    write_samples(tmp_path, VALUES)
    write_csv(tmp_path / "artifacts/profile/m.csv", PROFILE)
    run(params, "cost", "m", tmp_path)
    rows = read(tmp_path, "cost")
    assert {(r["setting"], r["budget"]) for r in rows if r["task"] == "read"} == {("full", ""), ("sparsemm", "24")}
    row = one(rows, condition="ms a token", setting="sparsemm")
    assert (row["value"], row["level"], row["ci_low"]) == ("2.5", "128", "")
    write_csv(tmp_path / "artifacts/profile/m.csv", PROFILE[:2])
    with pytest.raises(DataError, match="B = 24"):
        run(params, "cost", "m", tmp_path)
    write_csv(tmp_path / "artifacts/profile/m.csv", [PROFILE[2] | {"kept_bytes": "many"}])
    with pytest.raises(DataError, match="kept_bytes"):
        run(params, "cost", "m", tmp_path)


def test_samples_that_are_missing_malformed_or_unpaired_are_refused(tmp_path):
    path = tmp_path / "artifacts" / "evaluate" / "m.samples.parquet"
    with pytest.raises(DataError, match="cannot be read"):
        read_samples(tmp_path, "m")
    write_samples(tmp_path, VALUES | {("read", "snapkv", 12): [1.0]})
    with pytest.raises(DataError, match="alike"):
        read_samples(tmp_path, "m")
    path.write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="cannot be read"):
        read_samples(tmp_path, "m")
    import pyarrow as pa
    import pyarrow.parquet as pq

    for table in (pa.table({"task": ["read"]}), pa.table({"task": pa.array([], pa.string())})):
        pq.write_table(table, path)
        with pytest.raises(DataError):
            read_samples(tmp_path, "m")


def test_tables_that_are_missing_or_malformed_are_refused(params, tmp_path):
    evaluated = Evaluated(params, "cost", "m", tmp_path, None)
    path = tmp_path / "artifacts" / "evaluate" / "m.csv"
    with pytest.raises(DataError, match="cannot be read"):
        _ = evaluated.kept
    write_csv(path, [{"task": "read"}])
    with pytest.raises(DataError, match="kept_slots"):
        _ = evaluated.kept
    write_csv(path, [{"task": "read", "method": "a", "budget": "x", "kept_slots": "1", "bytes": "1"}])
    with pytest.raises(DataError, match="budget"):
        _ = evaluated.kept
    with pytest.raises(DataError, match="cannot be read"):
        _ = evaluated.timings
