"""What `studies` refuses."""

from __future__ import annotations

import pytest
import yaml

from sparsemm.errors import ParamsError
from sparsemm.params import parse_params
from sparsemm.studies import GROUPS, STUDIES, in_group
from tests.repository import ROOT


def given(**studies):
    value = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    groups = {group: {name: studies[name] for name in in_group(group) if name in studies} for group in GROUPS}
    return value | {"studies": groups | {name: one for name, one in studies.items() if name not in STUDIES}}


@pytest.mark.parametrize(
    ("studies", "said"),
    [
        ({"magic": {}}, "studies.magic"),
        ({"measured": {"magic": {}}}, "studies.measured.magic"),
        ({"compared": None}, "studies.compared: .*{} where it is empty"),
        ({"measured": {"curve": {}}}, "studies.measured.curve"),
        ({"rho": {"samples": 4, "values": [1.5], "budget": 24}}, "rho"),
        ({"rho": {"samples": 4, "values": [0.1, 0.1], "budget": 24}}, "repeats"),
        ({"rho": {"samples": 4, "values": [0.1], "budget": 3}}, "below allocate.window"),
        ({"parts": {"samples": 4, "budgets": []}}, "budgets"),
        ({"parts": {"samples": 4, "budgets": [24, 3]}}, "below allocate.window"),
        ({"parts": {"samples": 999, "budgets": [24]}}, "more than the evaluation"),
        ({"masking": {"samples": 4, "fractions": [0.0]}}, "fractions"),
        ({"masking": {"samples": 1, "fractions": [0.1]}}, "samples"),
        ({"curve": {"precision": 0.0}}, "precision"),
        ({"length": {"groups": 1}}, "groups"),
        ({"later": {"samples": 4, "methods": ["magic"], "budgets": [24]}}, "methods"),
    ],
)
def test_what_makes_no_sense_is_refused(studies, said):
    with pytest.raises(ParamsError, match=said):
        parse_params(yaml.safe_dump(given(**studies)))


def test_tables_are_compared_with_those_of_another_data_set():
    value = given(sources={"samples": 4, "budgets": [24]})
    assert parse_params(yaml.safe_dump(value)).robustness
    with pytest.raises(ParamsError, match=r"studies\.compared\.sources: .*name a data set under robustness"):
        parse_params(yaml.safe_dump(value | {"robustness": {}}))


def test_questions_need_pages_that_can_be_asked_about():
    value = given(later={"samples": 4, "methods": ["full"], "budgets": [24]})
    value["datasets"]["evaluation"] = {"source": "folder", "path": "x", "format": "coco", "licence": "l", "samples": 96}
    value["evaluate"]["tasks"] = ["read"]
    with pytest.raises(ParamsError, match="later: questions"):
        parse_params(yaml.safe_dump(value))


def test_cost_needs_a_budget_that_is_evaluated():
    value = given(cost={})
    value["profile"]["budget"] = 16
    with pytest.raises(ParamsError, match=r"studies\.derived\.cost: profile.budget 16"):
        parse_params(yaml.safe_dump(value))


def test_no_study_and_a_hub_model_are_valid():
    value = given()
    value["models"] = {"q": {"checkpoint": "Qwen/Qwen2-VL-7B-Instruct", "family": "qwen2_vl", "dtype": "bfloat16"}}
    assert parse_params(yaml.safe_dump(value)).studies.enabled() == {}
    whole = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8")) | {"models": value["models"]}
    assert set(parse_params(yaml.safe_dump(whole)).studies.enabled()) == set(STUDIES)
