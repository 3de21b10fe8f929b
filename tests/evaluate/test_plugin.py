"""The model as lmms-eval runs it: by its own command line on every twin, and asked directly."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from sparsemm.cli import main
from sparsemm.doctor.machine import torchvision
from sparsemm.errors import BudgetError, DataError, ModelError, ScoreTableError
from sparsemm.evaluate.tasks import load_published
from sparsemm.evaluate.tasks.published import PUBLISHED, task_files
from sparsemm.policies import METHODS, SELECTORS, method_options
from sparsemm.policies.peak import Peak
from sparsemm.policies.sparsemm import SparseMM
from sparsemm.policies.window_attention import WindowAttention
from sparsemm.recipes import _log_once
from sparsemm.registry.lookup import load_scores
from tests.recipes import recipe

ROOT = Path(__file__).parent.parent.parent
KEY = "tiny-qwen2-vl"
CHECKPOINT = str(ROOT / "data" / "checkpoints" / KEY)
TASKS = [task for task in PUBLISHED if task != "textcaps_val" or shutil.which("java")]


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    """A process that finds this source tree and its entry points, and no network."""
    with open(ROOT / "pyproject.toml", "rb") as handle:
        groups = tomllib.load(handle)["project"]["entry-points"]
    text = "".join(f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in one.items()) for group, one in groups.items())
    site = tmp_path / "site"
    (site / "sparsemm_here-0.dist-info").mkdir(parents=True)
    (site / "sparsemm_here-0.dist-info" / "entry_points.txt").write_text(text)
    (site / "sparsemm_here-0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: sparsemm-here\n")
    offline = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9", "OMP_NUM_THREADS": "1"}
    return os.environ | offline | {"PYTHONPATH": f"{ROOT}{os.pathsep}{site}"}


@pytest.fixture
def lmms_eval(environment, tmp_path, twins):
    """lmms-eval's command line, by the module that has it."""

    def run(module: str, model: str, tasks: list[str], *more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", module, "--model", "sparsemm", "--model_args", model, *more]
        command += ["--tasks", ",".join(f"{task}_twin" for task in tasks), "--include_path", str(twins / "tasks")]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    return run


def stage(folder, table, twins):
    """Rows and predictions of the evaluate stage over the same documents."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["models"] = {KEY: params["models"][KEY] | {"checkpoint": CHECKPOINT}}
    params["allocate"]["budgets"] = [24]
    params["evaluate"] |= {"tasks": TASKS, "source": str(twins), "samples": 4, "batch_size": 2, "bootstrap": 50}
    params["evaluate"]["methods"] = ["full", "sparsemm"]
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    (folder / "artifacts" / "scores").mkdir(parents=True)
    shutil.copy(table, folder / "artifacts" / "scores" / f"{KEY}.safetensors")
    arguments = ["--params", str(folder / "params.yaml"), "--root", str(folder)]
    assert main([*arguments, "allocate", KEY]) == 0 and main([*arguments, "evaluate", KEY]) == 0
    with open(folder / "artifacts" / "evaluate" / f"{KEY}.csv", encoding="utf-8") as handle:
        return [row for row in csv.DictReader(handle) if row["method"] == "sparsemm"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # CIDEr's tokenizer leaves pipes open
def test_lmms_evals_command_line_says_what_the_stage_says(lmms_eval, tmp_path, table, twins):
    model = f"pretrained={CHECKPOINT},method=sparsemm,budget=24,window=4,scores={table}"
    output = ["--log_samples", "--output_path", str(tmp_path / "out"), "--batch_size", "2"]
    done = lmms_eval("sparsemm.evaluate.lmms_eval", model, TASKS, *output)
    assert done.returncode == 0, done.stderr[-3000:]
    (found,) = (tmp_path / "out").glob(f"*{KEY}/*_results.json")
    results = json.loads(found.read_text(encoding="utf-8"))["results"]
    rows = {row["task"]: float(row["value"]) for row in stage(tmp_path, table, twins)}
    assert set(rows) == set(TASKS)
    for task, value in rows.items():
        scale = {"ocrbench": 4 / 1000, "mmbench_en_dev": 100}.get(task, 1)  # of 1,000 documents; in percent
        theirs = results[f"{task}_twin"][f"{PUBLISHED[task].metric},none"]
        assert theirs == pytest.approx(value * scale, abs=1e-5), task
    assert predictions(tmp_path / "out") == predicted(tmp_path)


def test_the_plain_command_runs_unless_the_doctor_says_why_not(lmms_eval):
    done = lmms_eval("lmms_eval", f"pretrained={CHECKPOINT}", ["gqa"], "--limit", "1")
    if torchvision().status == "ok":
        assert done.returncode == 0 and "|gqa_twin" in done.stdout, done.stderr[-3000:]
    else:
        assert done.returncode == 1 and "operator torchvision::nms does not exist" in done.stderr


def predictions(folder):
    """What lmms-eval logged: {(task, document): answer}."""
    result = {}
    for path in folder.rglob("*_samples_*.jsonl"):
        task = path.stem.split("_samples_")[1].removesuffix("_twin")
        for line in path.read_text(encoding="utf-8").splitlines():
            one = json.loads(line)
            result[task, str(one["doc_id"])] = one["filtered_resps"]
    return {at: text for at, text in result.items() if at[0] != "mmbench_en_dev" or int(at[1]) % 2 == 0}


def predicted(folder):
    """The same of the stage, which lists a question of MMBench once for all its turned copies."""
    rows = pq.read_table(folder / "artifacts" / "evaluate" / f"{KEY}.samples.parquet").to_pylist()
    return {(row["task"], row["id"]): row["prediction"] for row in rows if row["method"] == "sparsemm"}


@pytest.fixture(scope="module")
def make():
    from sparsemm.evaluate.plugin import SparseMM

    return SparseMM


@pytest.mark.parametrize("name", ["tiny-llava-next-vicuna", "tiny-qwen2-vl"])
def test_answers_come_in_the_order_of_the_requests(make, name, twins, tmp_path):
    tasks = [load_published(task, task_files(task, str(twins), twins), tmp_path, 4, 8) for task in ("gqa", "ocrbench")]
    requests = [request for task in tasks for request in task._task.instances]
    model = make(str(ROOT / "data" / "checkpoints" / name), method="snapkv", budget=24, window=4, batch_size="3")
    model.task_dict = {f"sparsemm_{task.name}": task._task.dataset for task in tasks}
    together = model.generate_until(requests)
    assert [model.generate_until([request])[0] for request in requests] == together and len(set(together)) > 2


def test_every_option_of_a_method_is_an_argument(make, table):
    docs = (ROOT / "docs" / "evaluate.md").read_text(encoding="utf-8")
    documented = re.findall(r"^\| (`.*`) \|.*methods' options", docs, re.MULTILINE)
    names = [*METHODS, *(f"sparsemm+{selector}" for selector in SELECTORS)]
    options = set().union(*map(method_options, names)) - {"selector"}
    assert set(re.findall(r"`(\w+)`", documented[0])) == options
    known = "method=sparsemm-adaptive,budget=24,window=4,rho=0.3,adapt=1,pooling_kernel=3"
    policy = make.create_from_arg_string(f"pretrained={CHECKPOINT},scores={table},sinks=2,{known}").policy
    assert (policy.window, policy.rho, policy.adapt, policy.selector.pooling_kernel) == (4, 0.3, 1, 3)


def test_auto_is_the_recipes_method_for_known_questions(make, table, monkeypatch, caplog):
    from sparsemm.evaluate import plugin

    loaded = load_scores(table)
    monkeypatch.setattr(plugin, "load_scores", lambda *_: loaded.with_recipe(recipe(loaded, rows=3)))
    policy = make(CHECKPOINT, method="auto", budget=24, scores="models:/m@champion", window=5).policy
    assert isinstance(policy, SparseMM) and policy.selector == Peak(rows=3)
    assert (policy.window, policy.rho, policy.budget) == (5, 0.4, 24)
    monkeypatch.undo()
    _log_once.cache_clear()
    plain = make(CHECKPOINT, method="auto", budget=24, scores=str(table), window=5).policy
    assert isinstance(plain, SparseMM) and plain.selector == WindowAttention() and "no recipe" in caplog.text


def test_what_cannot_be_served_is_refused(make, table):
    for options, error in [
        ({"windwo": 4}, DataError),
        ({"trust_remote_code": True}, ModelError),
        ({"batch_size": "auto"}, DataError),
        ({"revision": "0123456789abcdef"}, ModelError),
        ({"method": "sparsemm", "budget": 24, "window": 4}, BudgetError),
        ({"method": "sparsemm", "budget": 2, "scores": str(table)}, BudgetError),
    ]:
        with pytest.raises(error):
            make(CHECKPOINT, **options)
    other = str(ROOT / "data" / "checkpoints" / "tiny-llava-next-vicuna")
    with pytest.raises(ScoreTableError):
        make(other, method="sparsemm", budget=24, window=4, scores=str(table))


@pytest.mark.parametrize(
    ("given", "own", "said"),
    [
        ("pretrained=a,windwo=4", {}, r"'windwo', did you mean window\? .*pretrained, revision, method, budget"),
        ("pretrained=a,xyzzy=4", {}, r"unknown argument 'xyzzy' \(arguments: pretrained, "),
        ("method=full", {"batch_size": 1}, r"pretrained is missing.*arguments: pretrained, "),
        ("", {}, "pretrained is missing"),
        ("pretrained", {}, r"--model_args pretrained: not name=value"),
        ("pretrained=a,batch_size=8", {"batch_size": 1}, "batch_size is given twice .*--batch_size alone"),
        ("pretrained=a", {"max_batch_size": 8}, "unknown argument 'max_batch_size', did you mean batch_size"),
        ("pretrained=a,max_new_tokens=many", {"max_batch_size": None, "device": "cpu"}, "max_new_tokens is 'many'"),
    ],
)
def test_wrong_arguments_are_refused_with_the_right_names(make, given, own, said):
    with pytest.raises(DataError, match=said):
        make.create_from_arg_string(given, own)


def test_tasks_that_need_more_than_answers_are_refused(make):
    model = make(CHECKPOINT)
    for ask in (model.loglikelihood, model.generate_until_multi_round):
        with pytest.raises(DataError, match="not supported"):
            ask([])
