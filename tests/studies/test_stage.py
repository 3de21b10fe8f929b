"""Every study of the small model: shapes, resuming, and what is refused."""

from __future__ import annotations

import json
import shutil

import pytest

from sparsemm.cli import main
from sparsemm.errors import DataError, ParamsError, ScoreTableError
from sparsemm.evaluate.store import Store
from sparsemm.studies import in_group, read_study
from sparsemm.studies.common.stage import run
from tests.studies.crafted import KEY

ARMS = {  # where their number is known
    "masking": 1 + 3,
    "rho": 2 * 2,
    "parts": 3,
    "later": 4 * 3,
    "holding": 2 * 2,
    "storage": 3,
    "sources": 2 * 2 + 5,
    "looking": 2 * 3,
    "oracle": 1 + 2 * 3 * 4,
}
SAMPLES = {"registered": {"2"}, "language": {"2", "3"}}  # of those that do not ask about all three pages


def arms(rows):
    return {tuple(row[c] for c in ("task", "condition", "setting", "level", "budget")) for row in rows}


@pytest.mark.parametrize("name", [*in_group("measured"), *in_group("compared")])
def test_a_study_writes_its_rows_and_leaves_nothing_behind(made, rows, name):
    params, root = made
    run(params, name, KEY, root)
    result = [row for row in rows(root, name) if not row.get("refused")]
    assert len(arms(result)) == ARMS.get(name, len(arms(result)))
    assert len(read_study(root / f"artifacts/studies/{name}/{KEY}.csv", name, KEY)) == len(result)
    samples = SAMPLES.get(name, {"3"})
    assert {row["n"] for row in result if row["task"] != "scores"} == samples
    assert all(
        float(row["ci_low"]) <= float(row["value"]) <= float(row["ci_high"]) for row in result if row["n"] in samples
    )
    assert not (root / "artifacts" / "work" / "studies" / name / KEY).exists()
    assert json.loads((root / "artifacts" / "studies" / name / f"{KEY}.json").read_text())


def test_equal_slots_are_equal_and_equal_bytes_do_not_exceed(made, rows):
    params, root = made
    run(params, "storage", KEY, root)
    size = {row["condition"]: float(row["bytes"]) for row in rows(root, "storage")}
    assert size["int8, equal slots"] < 0.95 * size["int8, equal bytes"] <= 0.95 * size["model dtype"]
    run(params, "parts", KEY, root)
    assert len({row["kept_slots"] for row in rows(root, "parts")}) == 1


def test_a_stopped_study_goes_on_and_ends_in_the_same_bytes(made, tmp_path, monkeypatch):
    params, root = made
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for folder in (whole, stopped):
        shutil.copytree(root / "artifacts" / "datasets", folder / "artifacts" / "datasets")
        shutil.copytree(root / "artifacts" / "scores", folder / "artifacts" / "scores")
    run(params, "rho", KEY, whole)
    put, kept, most = Store.put, [], [3]

    def keep(self, task, name, *arguments):
        if len(kept) == most[0]:
            raise KeyboardInterrupt
        put(self, task, name, *arguments)
        kept.append((task, name))

    monkeypatch.setattr(Store, "put", keep)
    with pytest.raises(KeyboardInterrupt):
        run(params, "rho", KEY, stopped)
    assert not (stopped / "artifacts" / "studies").exists()
    most[0] = 99
    run(params, "rho", KEY, stopped)
    assert len(kept) == len(set(kept)) == 4  # two tasks in two variants: what was kept was not asked again
    for end in ("csv", "json"):
        name = f"artifacts/studies/rho/{KEY}.{end}"
        assert (whole / name).read_bytes() == (stopped / name).read_bytes()


def test_what_cannot_be_studied_is_refused(made, tmp_path):
    params, root = made
    with pytest.raises(ParamsError, match="no study 'magic'"):
        run(params, "magic", KEY, root)
    with pytest.raises(ParamsError, match="no model"):
        run(params, "rho", "nobody", root)
    none = params.model_copy(update={"studies": type(params.studies)()})
    with pytest.raises(ParamsError, match="known: none"):
        run(none, "rho", KEY, root)
    with pytest.raises(DataError):
        run(params, "rho", KEY, tmp_path)
    shutil.copytree(root / "artifacts" / "datasets", tmp_path / "artifacts" / "datasets")
    with pytest.raises(ScoreTableError, match="chase"):
        run(params, "rho", KEY, tmp_path)
    rho = params.studies.measured.rho.model_copy(update={"samples": 4})
    more = params.studies.measured.model_copy(update={"rho": rho})
    many = params.model_copy(update={"studies": params.studies.model_copy(update={"measured": more})})
    with pytest.raises(DataError, match="3 records, 4 needed"):
        run(many, "rho", KEY, root)


def test_the_command_says_what_is_wrong(capsys):
    assert main(["study", "magic", KEY]) == 1
    assert "no study 'magic'" in capsys.readouterr().err
