"""params.yaml: strict, and clear about what is wrong where."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from sparsemm.errors import ParamsError
from sparsemm.layouts import families
from sparsemm.params import ModelParams, load_params, parse_params, schema
from sparsemm.policies import METHODS

OWN = Path(__file__).parent.parent / "params.yaml"


def changed(**changes):
    """The repository's params with values replaced: `stage__key=value`."""
    params = yaml.safe_load(OWN.read_text())
    for path, value in changes.items():
        *parents, last = path.split("__")
        target = params
        for parent in parents:
            target = target[parent]
        target[last] = value
    return yaml.safe_dump(params)


def test_the_repositorys_own_file_is_valid():
    params = load_params(OWN)
    assert params.models and params.chase.dataset in params.datasets


@pytest.mark.parametrize(
    ("changes", "key", "reason"),
    [
        ({"chase__speed": 3}, "chase.speed", "not permitted"),
        ({"chase__batch_size": "32"}, "chase.batch_size", "integer"),
        ({"chase__batch_size": 0}, "chase.batch_size", "greater than or equal to 1"),
        ({"chase__batch_size": True}, "chase.batch_size", "integer"),
        ({"allocate__rho": 1.5}, "allocate.rho", "less than or equal to 1"),
        ({"allocate__rho": float("nan")}, "allocate.rho", "finite"),
        ({"allocate__window": 1000}, "allocate", "below the window"),
        ({"allocate__budgets": []}, "allocate.budgets", "at least 1"),
        ({"allocate__budgets": [16, 8]}, "allocate", "rise"),
        ({"evaluate__methods": ["full", "best"]}, "evaluate.methods.1", "sparsemm"),
        ({"evaluate__pooling_kernel": 4}, "evaluate.pooling_kernel", "odd"),
        ({"evaluate__samples": 10**6}, "(top level)", "evaluate.samples"),
        ({"chase__dataset": "nowhere"}, "(top level)", "not under datasets"),
        ({"chase__dataset": "evaluation"}, "(top level)", "same split"),
        ({"registry": {"tracking_uri": "http://user:secret@host:5000"}}, "registry.tracking_uri", "holds credentials"),
        ({"registry": {"gate": {"min_split_half": 2}}}, "registry.gate.min_split_half", "less than or equal to 1"),
        ({"registry": {"gate": {"reference_budget": 13}}}, "(top level)", "not under allocate.budgets"),
        ({"profile__budget": 1}, "(top level)", "below allocate.window"),
        ({"models__x": {"checkpoint": "a", "family": "bert"}}, "models.x.family", "llava_next"),
        ({"models__x": {"checkpoint": "a", "family": "qwen2_vl", "revision": 12}}, "models.x.revision", "string"),
        ({"models__a.b": {"checkpoint": "a", "family": "qwen2_vl"}}, "models", "a.b"),
    ],
)
def test_what_is_wrong_is_refused_with_file_key_and_reason(changes, key, reason):
    with pytest.raises(ParamsError) as caught:
        parse_params(changed(**changes), "some.yaml")
    assert str(caught.value).startswith("some.yaml: ")
    assert f"{key}: " in str(caught.value) and reason in str(caught.value)


@pytest.mark.parametrize(
    ("text", "reason"), [("", "mapping"), ("[1]", "mapping"), ("a: [", "YAML"), ("a: 1\na: 2", "twice")]
)
def test_files_that_are_no_params_are_refused(text, reason):
    with pytest.raises(ParamsError, match=reason):
        parse_params(text)


def test_every_error_is_told_at_once():
    with pytest.raises(ParamsError, match="chase.speed.*allocate.rho"):
        parse_params(changed(chase__speed=1, allocate__rho=-1.0))


def test_missing_file_says_where_to_run(tmp_path):
    with pytest.raises(ParamsError, match="repository root"):
        load_params(tmp_path / "params.yaml")


def test_choices_agree_with_the_code():
    properties = schema()["$defs"]
    assert tuple(properties["ModelParams"]["properties"]["family"]["enum"]) == families()
    assert tuple(properties["EvaluateParams"]["properties"]["methods"]["items"]["enum"]) == METHODS


def test_unknown_model_names_the_known_ones():
    params = parse_params(changed(models={"one": {"checkpoint": "x", "family": "qwen2_vl"}}))
    assert params.model("one") == ModelParams(checkpoint="x", family="qwen2_vl")
    with pytest.raises(ParamsError, match="known: one"):
        params.model("two")
