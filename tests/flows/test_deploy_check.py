"""Trying a score table in vLLM before it is promoted; a stand-in answers instead of the engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from flows import deploy_check
from flows.deploy_check import judge, store, try_version
from sparsemm.datasets.records import write_records
from sparsemm.datasets.synthetic import PageStyle, draw_record
from sparsemm.errors import EngineError
from sparsemm.params import load_params
from sparsemm.vllm import trial
from tests.examples.services import make_table

ROOT = Path(__file__).parents[2]
KEY = "tiny-qwen2-vl"
PAGES = 3


def figures(**changes):
    row = {"metric": "word_accuracy", "requests": 40, "equal": 40, "full": 0.9, "served": 0.8}
    return {"budget": 24, "tasks": {"read": row | changes}}


@pytest.mark.parametrize(
    ("changes", "passed"),
    [
        ({}, [True, True]),
        ({"equal": 38}, [True, True]),
        ({"equal": 37}, [False, True]),
        ({"served": 0.73}, [True, True]),
        ({"served": 0.71}, [True, False]),
        ({"equal": 0, "served": 0.0}, [False, False]),
    ],
)
def test_equal_answers_in_full_and_accuracy_within_the_gate(changes, passed):
    check = judge(figures(**changes), 0.8)
    assert [reason.startswith("pass: read: ") for reason in check.reasons] == passed
    assert check.passed == all(passed)


def test_a_trial_of_nothing_does_not_pass():
    assert not judge({"budget": 24, "tasks": {}}, 0.8).passed


@pytest.fixture
def place(tmp_path, tiny):
    """Params of a small checkpoint, its score table, and an evaluation set of three pages."""
    values = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    values["models"] = {KEY: values["models"][KEY] | {"checkpoint": str(ROOT / "data" / "checkpoints" / KEY)}}
    (tmp_path / "artifacts" / "datasets").mkdir(parents=True)
    records = [draw_record("evaluation", 0, i, PageStyle()) for i in range(PAGES)]
    write_records(tmp_path / "artifacts" / "datasets" / "evaluation.parquet", records)
    from sparsemm.models import fingerprint

    make_table(tmp_path / "scores.safetensors", fingerprint(tiny(KEY)[0].config), 1)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return tmp_path, load_params(tmp_path / "params.yaml")


def test_what_the_engine_is_asked_and_how_it_is_scored(place, monkeypatch):
    root, params = place
    asked = []

    def run(python, one, folder):
        asked.append(one)
        assert all((folder / name).is_file() for request in one.requests for name in request.images)
        right = [record["answer"] for record in references(root, params)]
        return {"full": right, "served": ["nothing"] * len(right)}

    monkeypatch.setattr(trial, "run", run)
    check = try_version(params, KEY, root, root / "scores.safetensors", Path("python"), PAGES)
    (one,) = asked
    tasks = [name for name in params.evaluate.tasks if name in ("read", "qa")]
    assert len(one.requests) == PAGES * len(tasks)
    assert one.engines["served"]["budget"] == check.figures["budget"] == max(params.allocate.budgets)
    assert one.engines["full"]["budget"] < one.max_model_len
    for name in tasks:
        row = check.figures["tasks"][name]
        assert (row["requests"], row["full"], row["served"]) == (PAGES, 1.0, 0.0)
    assert not check.passed and any("in vLLM at budget" in reason for reason in check.reasons)


def references(root, params):
    """The reference answers of all requests, in order."""
    from sparsemm.datasets.records import read_records
    from sparsemm.evaluate.tasks.pages import documents

    records = read_records(root / "artifacts" / "datasets" / "evaluation.parquet")
    tasks = [name for name in params.evaluate.tasks if name in ("read", "qa")]
    return [doc for name in tasks for doc in documents(name, records, params.chase.prompt, params.evaluate.seed)]


def test_an_engine_that_fails_is_an_error_with_its_last_lines(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho scores are of another model >&2\nexit 3\n")
    python.chmod(0o755)
    one = trial.Trial("checkpoint", None, "float32", 100, {}, ())
    with pytest.raises(EngineError, match="vLLM ended with 3: scores are of another model"):
        trial.run(python, one, tmp_path)
    with pytest.raises(EngineError, match="cannot be started.*make vllm"):
        trial.run(tmp_path / "none", one, tmp_path)


def test_a_check_is_stored_with_its_version(tmp_path):
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(uri, registry_uri=uri)
    experiment = client.create_experiment("sparsemm", artifact_location=(tmp_path / "files").as_uri())
    client.create_registered_model("visual-heads.m")
    run = client.create_run(experiment).info.run_id
    version = client.create_model_version("visual-heads.m", f"runs:/{run}/published", run_id=run).version
    for values, verdict in ((figures(), "passed"), (figures(equal=3), "failed")):
        store(uri, "visual-heads.m", str(version), judge(values, 0.8))
        tags = client.get_model_version("visual-heads.m", version).tags
        assert tags["deploy_check"] == verdict and "full answers" in tags["deploy_check_reasons"]
        path = client.download_artifacts(run, deploy_check.FIGURES, str(tmp_path))
        assert json.loads(Path(path).read_text())["tasks"] == values["tasks"]
