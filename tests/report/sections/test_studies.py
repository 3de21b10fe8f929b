"""The studies in the page: charts, claims, all numbers, and published numbers beside ours."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from sparsemm.params import parse_params
from sparsemm.report.results import without_hollow
from sparsemm.report.sections import Material, studies
from sparsemm.studies.names import STUDIES
from tests.report.studied import rows
from tests.repository import ROOT


@pytest.fixture
def section(crafted):
    """The section's parts, checked."""
    given = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    given["models"] = {
        "m": {"checkpoint": "Qwen/Qwen2-VL-7B-Instruct", "family": "qwen2_vl", "note": "a <declared> test model"},
        "n": {"checkpoint": "a/n", "family": "qwen2_vl"},
    }

    def make(made):
        material = Material(parse_params(yaml.safe_dump(given)), [], {}, studies=made)
        return crafted.checked("".join(studies.parts(material)))

    return make


def test_every_study_has_words():
    assert set(studies.TEXT) == set(STUDIES)


def test_a_study_has_a_heading_charts_claims_and_all_numbers(section):
    found = section({"curve": {"m": rows()}, "length": {"n": rows("length", "n")}})
    assert [one["id"] for one in found.all("h3")] == ["study-curve", "study-length"]
    assert [one["href"] for one in found.all("a")] == ["#study-curve", "#study-length"]
    assert "m *: charts and numbers" in found.text and "n: charts and numbers" in found.text
    assert "a <declared> test model" in found.text and "better at B = 12" in found.text
    shown = [one["aria-label"] for one in found.all("div") if one.get("role") == "img"]
    assert [label.split(",")[0] for label in shown[::2]] == ["Accuracy against budget", "Long answers"]
    assert len(shown) == 3 and shown[1].startswith("Long answers: differences")
    assert all(json.loads(text)["data"] for text in found.scripts)


def test_all_numbers_begin_with_what_names_a_row_then_its_difference_and_verdict(section):
    text = section({"curve": {"n": [row | {"condition": "here"} for row in rows("curve", "n")]}}).text
    assert "settingdifference95 % intervalverdictvalue" in text
    assert re.search(r"sparsemm, read, here, B = 12, against snapkv\+0.200\[0.1\d\d, 0.2\d\d\]better", text)


def test_a_caption_speaks_of_its_own_panel(section):
    timed = [row | {"condition": "ms a token", "n": "", "ci_low": "", "ci_high": ""} for row in rows("cost", "n")]
    drawn = [row | {"condition": "random", "seeds": "3"} for row in rows("cost", "n")]
    text = section({"cost": {"n": [*rows("cost", "n"), *timed, *drawn]}}).text
    assert "read: 60 samples, 95 % bootstrap intervals over pages." in text
    assert "read, ms a token: no interval." in text
    assert (
        "read, random: 60 samples, 95 % bootstrap intervals over pages (and, for random methods, over draws)." in text
    )


def test_one_sample_is_said_to_have_no_interval(section):
    few = [without_hollow(row | {"n": "1", "pages": "1"}) for row in rows("curve", "n")]
    text = section({"curve": {"n": few}}).text
    assert "read: 1 sample, no interval and no verdict." in text and "better" not in text.split("All numbers")[1]


def test_what_all_models_show_leaves_test_models_out(section):
    found = section({"rho": {"m": rows("rho", gain=-0.2), "n": rows("rho", "n")}})
    first = json.loads(found.scripts[0])
    assert [trace["name"] for trace in first["data"]] == ["n"]
    assert first["layout"]["yaxis"]["ticktext"] == ["sparsemm against<br>snapkv"]
    counts = found.text[found.text.index("how often the interval says what, one model") :]
    assert "sparsemm against snapkv101+0.000 to +0.200" in counts
    assert "how often" not in section({"rho": {"m": rows("rho")}}).text


def test_many_charts_are_folded(section):
    more = [row | {"condition": f"condition {n}"} for n in range(4) for row in rows()]
    found = section({"curve": {"n": more}})
    assert "2 more charts" in found.text and len(found.scripts) == 5


def test_nothing_studied_is_nothing_shown(section):
    assert section({}).seen == []


def test_published_numbers_stand_beside_the_same_task(section):
    made = [row | {"budget": "256" if row["budget"] else ""} for row in rows(task="docvqa_val")]
    found = section({"curve": {"m": made}})
    assert "Beside the published numbers" in found.text and "0.934" in found.text and "arXiv" in found.text
    assert "Beside the published numbers" not in section({"curve": {"n": made}}).text
