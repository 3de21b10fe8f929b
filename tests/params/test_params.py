"""params.yaml: strict, and clear about what is wrong where."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from dvc.utils.serialize import loads_yaml

from sparsemm.errors import ParamsError
from sparsemm.evaluate.tasks import METRICS
from sparsemm.layouts import FAMILIES
from sparsemm.params import ModelParams, load_params, parse_params, schema
from sparsemm.params.models import OVERRIDDEN, without_folder
from sparsemm.policies import METHODS, SELECTORS, is_method
from sparsemm.studies import GROUPS, STUDIES, load

OWN = Path(__file__).parents[2] / "params.yaml"


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
        ({"chase__speed": 3}, "chase.speed", "unknown key"),
        ({"chase__batch_size": "32"}, "chase.batch_size", "integer"),
        ({"chase__batch_size": 0}, "chase.batch_size", "greater than or equal to 1"),
        ({"chase__batch_size": True}, "chase.batch_size", "integer"),
        ({"allocate__rho": 1.5}, "allocate.rho", "less than or equal to 1"),
        ({"allocate__rho": float("nan")}, "allocate.rho", "finite"),
        ({"allocate__window": 1000}, "allocate", "below the window"),
        ({"allocate__budgets": []}, "allocate.budgets", "must not be empty"),
        ({"allocate__budgets": [16, 8]}, "allocate", "increase"),
        ({"evaluate__methods": ["full", "best"]}, "evaluate.methods.1", "sparsemm"),
        ({"evaluate__methods": ["full", "full"]}, "evaluate.methods", "repeats"),
        ({"evaluate__pooling_kernel": 4}, "evaluate.pooling_kernel", "odd"),
        ({"evaluate__samples": 10**6}, "some.yaml", "evaluate.samples"),
        ({"chase__dataset": "nowhere"}, "some.yaml", "not under datasets"),
        ({"chase__dataset": "evaluation"}, "some.yaml", "same split"),
        ({"registry": {"tracking_uri": "http://user:secret@host:5000"}}, "registry.tracking_uri", "holds credentials"),
        ({"registry": {"gate": {"min_split_half": 2}}}, "registry.gate.min_split_half", "less than or equal to 1"),
        ({"registry": {"gate": {"reference_budget": 13}}}, "some.yaml", "not under allocate.budgets"),
        ({"profile__budget": 1}, "some.yaml", "below allocate.window"),
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
    ("text", "reason"),
    [
        ("", "mapping"),
        ("[1]", "mapping"),
        ("a: [", "YAML"),
        ("a: 1\na: 2", "twice"),
        ("? [a]\n: 1", "a key is a list"),
        ("a: &a {b: *a}", "unsupported kind"),
        ("a: " + "[" * 3000 + "]" * 3000, "deeply"),
    ],
)
def test_files_that_are_no_params_are_refused(text, reason):
    with pytest.raises(ParamsError, match=reason):
        parse_params(text)


def test_an_entry_may_begin_as_another_one_does():
    """As DVC reads it, which resolves merge keys too."""
    more = "  second: &two {<<: *one, note: two}\n  third: {<<: *two, note: three}\n"
    text = OWN.read_text(encoding="utf-8").replace("  tiny-qwen2-vl:\n", "  tiny-qwen2-vl: &one\n", 1)
    text = text.replace("\ndatasets:\n", f"{more}\ndatasets:\n", 1)
    models = parse_params(text).models
    assert [models[key].note for key in ("tiny-qwen2-vl", "second", "third")] == ["", "two", "three"]
    assert models["third"].checkpoint == models["tiny-qwen2-vl"].checkpoint
    assert loads_yaml(text)["models"]["third"] == models["third"].model_dump(exclude_unset=True)


@pytest.mark.parametrize(
    ("checkpoint", "gone"),
    [
        ("org/name", False),
        ("name", False),
        (str(OWN.parent), False),
        ("./nothing", True),
        ("../nothing", True),
        ("/nothing/at/all", True),
        ("~/nothing", True),
        ("data/nothing", True),
        ("my/own/nothing", True),
    ],
)
def test_a_checkpoint_that_can_only_be_a_folder_must_be_there(checkpoint, gone):
    assert without_folder(checkpoint) is gone


HUB = {"source": "hub", "repo": "o/d", "format": "synthdog", "samples": 8}
S3 = {"source": "s3", "location": "s3://b/p", "format": "coco", "samples": 8, "licence": "x"}
FOLDER = {"source": "folder", "path": "d", "format": "records_jsonl", "samples": 8, "licence": "x"}
PDF = {"source": "pdf", "path": "d", "samples": 8, "licence": "x"}


@pytest.mark.parametrize("given", [HUB, S3, FOLDER, PDF])
def test_every_source_of_data_has_its_own_keys(given):
    dataset = parse_params(changed(datasets__more=given)).datasets["more"]
    assert dataset.source == given["source"] and dataset.rows is None and dataset.max_bad == 0.05
    with pytest.raises(ParamsError, match="datasets.more.seed: unknown key"):
        parse_params(changed(datasets__more=given | {"seed": 1}))
    for key in set(given) - {"source"}:
        with pytest.raises(ParamsError, match=f"datasets.more.{key}: is missing"):
            parse_params(changed(datasets__more={k: v for k, v in given.items() if k != key}))


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({}, "datasets.more: .*source"),
        ({"source": "ftp"}, "datasets.more: .*'hub', 's3', 'folder', 'pdf'"),
        (HUB | {"format": "voc"}, "datasets.more.format: .*'mlt2019'"),
        (HUB | {"repo": "https://hub/o/d"}, "datasets.more.repo"),
        (HUB | {"repo": "../d/x"}, "datasets.more.repo"),
        (HUB | {"rows": [5, 5]}, "datasets.more.rows: .*holds no row"),
        (HUB | {"rows": [-1, 5]}, "datasets.more.rows.0"),
        (HUB | {"max_bad": 1.5}, "datasets.more.max_bad"),
        (HUB | {"samples": 0}, "datasets.more.samples"),
        (S3 | {"location": "b/p"}, "datasets.more.location"),
        (S3 | {"location": "s3://user:secret@b/p"}, "datasets.more.location"),
        (FOLDER | {"licence": ""}, "datasets.more.licence"),
        (PDF | {"dpi": 10}, "datasets.more.dpi"),
        (PDF | {"format": "coco"}, "datasets.more.format: unknown key"),
    ],
)
def test_a_wrong_source_of_data_is_told(given, reason):
    with pytest.raises(ParamsError, match=reason):
        parse_params(changed(datasets__more=given))


@pytest.mark.parametrize(
    ("one", "other", "reason"),
    [
        (HUB, HUB, "may draw the same rows of o/d"),
        (HUB, HUB | {"revision": "v2"}, "same rows"),
        (HUB | {"split": "train"}, HUB | {"split": "val"}, None),
        (HUB | {"split": "train"}, HUB, "same rows"),
        (HUB, HUB | {"repo": "O/D"}, "same rows"),
        (HUB, HUB | {"repo": "o/e"}, None),
        (HUB | {"rows": [0, 10]}, HUB | {"rows": [10, 20]}, None),
        (HUB | {"rows": [0, 11]}, HUB | {"rows": [10, 20]}, "same rows"),
        (HUB | {"rows": [0, 10]}, HUB, "same rows"),
        (HUB, S3, None),
        (S3, S3 | {"location": "s3://b/p/"}, "same rows"),
        (S3, S3 | {"location": "s3://b/p/val"}, "one contains the other"),
        (S3, S3 | {"location": "s3://b/p2"}, None),
        (FOLDER, FOLDER | {"path": "./d/"}, "same rows"),
        (FOLDER, FOLDER | {"path": "."}, "one contains the other"),
        (PDF, PDF, "same rows"),
        (PDF | {"rows": [0, 3]}, PDF | {"rows": [3, 9]}, None),
        (PDF, PDF | {"path": "d/one.pdf"}, "one contains the other"),
        (PDF, FOLDER, None),
    ],
)
def test_the_chase_and_the_evaluation_share_no_row(one, other, reason):
    values = {"chase__dataset": "a", "evaluate__dataset": "b", "evaluate__samples": 8, "evaluate__tasks": ["read"]}
    values |= {
        "studies": {},
        "tune": None,
        "models__smollm2-llava-next__evaluate": {},
        "models__smollm2-llava-next__tune": {},
    }
    for pair in ((one, other), (other, one)):
        text = changed(datasets__a=pair[0], datasets__b=pair[1], **values)
        if reason is None:
            parse_params(text)
        else:
            with pytest.raises(ParamsError, match=reason):
                parse_params(text)


def test_the_examples_of_the_manual_are_valid():
    text = (OWN.parent / "docs" / "data.md").read_text(encoding="utf-8")
    examples = yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0])["datasets"]
    datasets = parse_params(changed(datasets={**yaml.safe_load(OWN.read_text())["datasets"], **examples})).datasets
    assert {datasets[key].source for key in examples} == {"hub", "s3", "folder", "pdf"}


def test_questions_need_synthetic_pages():
    with pytest.raises(ParamsError, match="qa needs synthetic pages"):
        parse_params(changed(datasets__b=HUB, evaluate__dataset="b", evaluate__samples=8))


def test_every_error_is_told_at_once():
    with pytest.raises(ParamsError, match="chase.speed.*allocate.rho"):
        parse_params(changed(chase__speed=1, allocate__rho=-1.0))


def test_a_wrong_entry_of_a_list_does_not_make_the_list_empty():
    with pytest.raises(ParamsError) as caught:
        parse_params(changed(profile__lengths=[0]))
    assert "profile.lengths.0" in str(caught.value) and "empty" not in str(caught.value)


def test_missing_file_says_where_to_run(tmp_path):
    with pytest.raises(ParamsError, match="repository root"):
        load_params(tmp_path / "params.yaml")


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "params.yaml").write_bytes(b"models: \xff")
    with pytest.raises(ParamsError, match="not UTF-8"):
        load_params(tmp_path / "params.yaml")


def test_choices_agree_with_the_code():
    properties = schema()["$defs"]
    assert tuple(properties["ModelParams"]["properties"]["family"]["enum"]) == FAMILIES
    evaluate = properties["EvaluateParams"]["properties"]
    pattern = re.compile(evaluate["methods"]["items"]["pattern"])
    names = [*METHODS, *(f"{policy}+{selector}" for policy in METHODS for selector in SELECTORS)]
    assert [name for name in names if pattern.match(name)] == [name for name in names if is_method(name)]
    assert is_method("sparsemm+peak") and not pattern.match("sparsemm+") and not pattern.match("peak")
    assert tuple(evaluate["tasks"]["items"]["enum"]) == tuple(METRICS)


def test_a_default_that_changes_is_noticed():
    """DVC tracks what params.yaml says: where it says nothing, a new default would leave old results in place.

    Options of studies are left out: their defaults are in files that DVC watches.
    """
    kinds = [load(name).params for name in STUDIES]
    watched = {kind.__name__ for kind in kinds if kind.__module__.startswith("sparsemm.studies")}
    watched |= {"StudiesParams", *(f"{group.title()}Studies" for group in GROUPS)}
    defaults = {
        name: values
        for name, one in schema()["$defs"].items()
        if name not in watched
        if (values := {field: value["default"] for field, value in one["properties"].items() if "default" in value})
    }
    known = json.loads(Path(__file__).with_name("defaults.json").read_text(encoding="utf-8"))
    assert defaults == known, "write the old value into params.yaml or run the stages that read it, then defaults.json"


def test_unknown_model_names_the_known_ones():
    params = parse_params(changed(models={"one": {"checkpoint": "x", "family": "qwen2_vl"}}))
    assert params.model("one") == ModelParams(checkpoint="x", family="qwen2_vl")
    with pytest.raises(ParamsError, match="known: one"):
        params.model("two")


@pytest.mark.parametrize(
    ("where", "value", "reason"),
    [
        ("robustness", {"nowhere": {}}, "robustness.nowhere is not under datasets"),
        ("robustness", {"calibration": {}}, "robustness.calibration is chase.dataset itself"),
        ("robustness", {"evaluation": {"prompt": ""}}, "robustness.evaluation.prompt"),
        ("chase", {"dataset": "calibration", "stop": {"min_samples": 0}}, "chase.stop.min_samples"),
        ("chase", {"dataset": "calibration", "stop": {"min_samples": 9, "top_overlap": 2}}, "chase.stop.top_overlap"),
    ],
)
def test_further_data_sets_and_early_stops_are_checked(where, value, reason):
    raw = yaml.safe_load(OWN.read_text()) | {where: value}
    with pytest.raises(ParamsError, match=reason):
        parse_params(yaml.safe_dump(raw))


def test_params_over_another_data_set():
    raw = yaml.safe_load(OWN.read_text()) | {"robustness": {"evaluation": {"prompt": "Read"}}}
    params = parse_params(yaml.safe_dump(raw))
    assert params.over(None) is params
    assert (params.over("evaluation").chase.dataset, params.over("evaluation").chase.prompt) == ("evaluation", "Read")
    with pytest.raises(ParamsError, match="no data set 'calibration'"):
        params.over("calibration")


def test_a_model_may_override_the_params_of_its_stages():
    raw = yaml.safe_load(OWN.read_text())
    key = next(iter(raw["models"]))
    raw["models"][key] |= {"evaluate": {"samples": 7, "methods": ["full"]}, "allocate": {"rho": 0.5}}
    params = parse_params(yaml.safe_dump(raw))
    own = params.of(key)
    assert (own.evaluate.samples, own.evaluate.methods, own.allocate.rho) == (7, ("full",), 0.5)
    assert own.evaluate.tasks == params.evaluate.tasks and own.allocate.budgets == params.allocate.budgets
    assert own.of(key) == own and own.model(key) == params.model(key).model_copy(update=dict.fromkeys(OVERRIDDEN, {}))
    other = next(one for one in reversed(raw["models"]) if set(raw["models"][one]).isdisjoint(OVERRIDDEN))
    assert params.of(other) is params and own.model(other) == params.model(other)
    with pytest.raises(ParamsError, match="no model 'nowhere'"):
        params.of("nowhere")


def test_an_override_of_a_study_that_is_not_made_waits_until_it_is():
    raw = yaml.safe_load(OWN.read_text())
    key = next(iter(raw["models"]))
    raw["models"][key]["studies"] = {"measured": {"rho": {"samples": 5}}}
    assert parse_params(yaml.safe_dump(raw)).of(key).studies.enabled()["rho"].samples == 5
    del raw["studies"]["measured"]["rho"]
    assert "rho" not in parse_params(yaml.safe_dump(raw)).of(key).studies.enabled()


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"studies": {"measured": {"rh": {}}}}, "studies.measured.rh: unknown key"),
        ({"studies": {"measured": 3}}, "studies.measured"),
        ({"evaluate": {"sample": 3}}, "evaluate.sample: unknown key"),
        ({"evaluate": {"samples": 10**6}}, "evaluate.samples is more than"),
        ({"evaluate": {"dataset": "small-type"}}, "evaluate.dataset: the data set is the same for all models"),
        ({"chase": {"dataset": "small-type"}}, "chase.dataset: the data set is the same for all models"),
        ({"allocate": {"window": 99}}, "allocate: budget 12 is below the window of 99"),
        ({"profile": 3}, "profile"),
    ],
)
def test_overrides_are_checked_with_what_they_override(overrides, reason):
    raw = yaml.safe_load(OWN.read_text())
    key = next(iter(raw["models"]))
    raw["models"][key] |= overrides
    with pytest.raises(ParamsError, match=f"models.{key}.({reason})"):
        parse_params(yaml.safe_dump(raw))
