"""The studies' sections: claims follow from intervals."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

from sparsemm.errors import DataError
from sparsemm.params import parse_params
from sparsemm.report.studies import claims, sections
from sparsemm.studies.rows import Arm, Outcome, tabulate
from sparsemm.studies.stage import write
from tests.repository import ROOT

RNG = np.random.default_rng(0)
BASE = RNG.random(60)


def rows(name="curve", key="m", task="read", gain=0.2):
    outcomes = {}
    for budget, more in ((12, gain), (24, 0.0)):
        outcomes[Arm(task, "", "snapkv", None, budget)] = Outcome(BASE, "accuracy")
        outcomes[Arm(task, "", "sparsemm", None, budget)] = Outcome(BASE + more, "accuracy")
    outcomes[Arm(task, "", "full")] = Outcome(BASE + 0.3, "accuracy")
    options = {"resamples": 100, "seed": 0, "precision": 0.05}
    compared = lambda arm: [arm._replace(setting="snapkv")]  # noqa: E731
    return [
        {column: str(value) for column, value in row.items()}
        for row in tabulate({"model": key, "study": name}, outcomes, compared, **options)
    ]


@pytest.fixture
def params():
    given = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    given["models"] = {
        "m": {"checkpoint": "Qwen/Qwen2-VL-7B-Instruct", "family": "qwen2_vl", "note": "a <declared> test model"},
        "n": {"checkpoint": "a/n", "family": "qwen2_vl"},
    }
    return parse_params(yaml.safe_dump(given))


@pytest.mark.parametrize(("gain", "word"), [(0.2, "better"), (-0.2, "worse"), (0.0, "no difference shown")])
def test_a_claim_says_what_the_interval_says(gain, word):
    (said,) = claims(rows(gain=gain))
    assert said.startswith(f"read: sparsemm against snapkv: {word} at B = 12 ({gain:+.3f} [")
    assert "no difference shown" in said and said.endswith("].") is False


def test_sections_hold_figures_claims_and_all_numbers(params, tmp_path, crafted):
    write(rows(), "curve", "m", tmp_path)
    write(rows("length", "n"), "length", "n", tmp_path)
    images = {}
    found = sections(params, tmp_path, images)
    assert [anchor for anchor, _, _ in found] == ["study-curve", "study-length"]
    assert sorted(images) == ["study-curve-m", "study-length-n"]
    assert all(image.startswith(b"\x89PNG") for image in images.values())
    page = crafted.checked("".join(found[0][2]))
    assert "a <declared> test model" in page.text and "better at B = 12" in page.text
    assert page.all("img")[0]["alt"].startswith("Accuracy against budget")
    again = {}
    sections(params, tmp_path, again)
    assert again == images


def test_nothing_studied_is_nothing_shown_and_a_damaged_file_is_refused(params, tmp_path):
    assert sections(params, tmp_path, {}) == []
    path = tmp_path / "artifacts" / "studies" / "rho" / "m.csv"
    path.parent.mkdir(parents=True)
    path.write_text("half")
    with pytest.raises(DataError, match="columns"):
        sections(params, tmp_path, {})


def test_published_numbers_stand_beside_the_same_task(params, tmp_path):
    made = [row | {"budget": "256" if row["budget"] else ""} for row in rows(task="docvqa_val")]
    write(made, "curve", "m", tmp_path)
    anchor, _, (table,) = sections(params, tmp_path, {})[-1]
    assert anchor == "published" and "0.9345"[:5] in table and "arXiv" in table
