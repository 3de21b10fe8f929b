"""Tries a candidate's score table in a real vLLM engine before it may become champion."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from flows.artifacts import slug
from flows.rechase import promote_model
from flows.stages import check_runs
from sparsemm.errors import DataError
from sparsemm.params import Params, load_params

FIGURES = "deploy_check.json"  # file in the version's run
PYTHON = "SPARSEMM_VLLM_PYTHON"  # interpreter of an environment that has vLLM
EQUAL = 0.95  # share of full answers that have to be equal: two tokens may be worth nearly the same
LONGEST = 4000  # characters that a tag may have


@dataclass(frozen=True)
class Check:
    """What the trial of a version showed.

    Attributes:
        passed: whether every line did.
        reasons: a line for every condition.
        figures: numbers behind them, as JSON.
    """

    passed: bool
    reasons: tuple[str, ...]
    figures: dict[str, Any]


def judge(figures: dict[str, Any], min_accuracy_ratio: float) -> Check:
    """Judges the figures of a trial: equal answers in full, and accuracy at the serving budget."""
    lines = []
    for name, row in figures["tasks"].items():
        share = row["equal"] / row["requests"]
        what = f"{name}: {row['equal']} of {row['requests']} full answers are those of transformers"
        lines.append((share >= EQUAL, f"{what}, must be at least {EQUAL:.0%}"))
        what = f"{name}: accuracy {row['served']:.4f} in vLLM at budget {figures['budget']}"
        bound = min_accuracy_ratio * row["full"]
        lines.append(
            (row["served"] >= bound, f"{what}, must be at least {min_accuracy_ratio:g} x full {row['full']:.4f}")
        )
    reasons = tuple(f"{'pass' if good else 'FAIL'}: {line}" for good, line in lines)
    return Check(bool(lines) and all(good for good, _ in lines), reasons, figures)


def try_version(params: Params, key: str, root: Path, scores: Path, python: Path, samples: int | None) -> Check:
    """Asks a vLLM engine in full and at the serving budget, and transformers in full, about the evaluation set.

    The serving budget is the gate's reference budget, or the largest that was allocated.

    Args:
        scores: the version's score table.
        python: interpreter that has vLLM.
        samples: pages of every task; None for all of the evaluation.

    Raises:
        DataError: if the evaluation set is missing, or the model has none of this project's own tasks.
        EngineError: if vLLM does not serve the model with this table.
    """
    from sparsemm.datasets.records import read_records
    from sparsemm.evaluate.answers import make_batch
    from sparsemm.evaluate.questions import batches
    from sparsemm.evaluate.tasks import LOCAL
    from sparsemm.evaluate.tasks.pages import PageTask
    from sparsemm.models import load_model
    from sparsemm.prompts import chat_prompt, move_inputs
    from sparsemm.scores import ScoreTable
    from sparsemm.vllm.trial import Request, Trial, run

    of_model, entry = params.of(key), params.model(key)
    evaluate, allocate = of_model.evaluate, of_model.allocate
    names = [name for name in evaluate.tasks if name in LOCAL]
    if not names:
        raise DataError(f"none of the tasks {', '.join(LOCAL)} is evaluated", where=f"{key} in params.yaml")
    data = root / "artifacts" / "datasets" / f"{evaluate.dataset}.parquet"
    records = read_records(data, limit=samples or evaluate.samples)
    tasks = {name: PageTask(name, records, of_model.chase.prompt, evaluate.seed) for name in names}
    model, processor = load_model(entry)
    ScoreTable.load(scores).check_model(model.config)
    longest = 0
    right: dict[str, list[str]] = {}
    new: dict[str, int] = {}
    for name, each in tasks.items():
        lengths = [len(processor.tokenizer(question.answer)["input_ids"]) for question in each.questions]
        new[name], texts = max(lengths) + 8, [""] * len(records)
        for index in batches(each.questions, 8):
            inputs = move_inputs(make_batch(processor, each.questions, index).inputs, model)
            prompt = inputs["input_ids"].shape[1]
            longest = max(longest, prompt + new[name])
            tokens = model.generate(**inputs, max_new_tokens=new[name], do_sample=False)[:, prompt:]
            for at, text in zip(index, processor.batch_decode(tokens, skip_special_tokens=True), strict=True):
                texts[at] = text
        right[name] = texts
    budget = params.registry.gate.reference_budget or max(allocate.budgets)
    shared = {"scores": str(scores.resolve()), "window": allocate.window, "rho": allocate.rho, "mode": allocate.mode}
    engines = {"full": shared | {"budget": longest}, "served": shared | {"budget": budget}}
    with tempfile.TemporaryDirectory(prefix="sparsemm-") as temporary:
        folder = Path(temporary)
        requests = []
        for name, each in tasks.items():
            for number, question in enumerate(each.questions):
                (image,) = question.images()
                image.save(folder / f"{number}.png")
                text = chat_prompt(processor, [image], question.prompt)
                requests.append(Request(text, (f"{number}.png",), new[name]))
        checkpoint = entry.checkpoint if not Path(entry.checkpoint).is_dir() else str(Path(entry.checkpoint).resolve())
        revision = entry.revision if checkpoint == entry.checkpoint else None
        trial = Trial(checkpoint, revision, entry.dtype, longest + 1, engines, tuple(requests))
        answers = run(python, trial, folder)
    figures: dict[str, Any] = {"budget": budget, "tasks": {}}
    for number, (name, each) in enumerate(tasks.items()):
        part = slice(number * len(records), (number + 1) * len(records))
        values = {engine: [one.value for one in each.score(answers[engine][part])] for engine in engines}
        equal = sum(a.strip() == b.strip() for a, b in zip(answers["full"][part], right[name], strict=True))
        row = {engine: sum(one) / len(one) for engine, one in values.items()}
        figures["tasks"][name] = {"metric": each.metric, "requests": len(records), "equal": equal, **row}
    return judge(figures, params.registry.gate.min_accuracy_ratio)


def store(tracking_uri: str, name: str, version: str, check: Check) -> None:
    """Stores a check with a version: its figures in the version's run, and verdict and reasons as tags."""
    from sparsemm.registry.client import answering, connect

    client = connect(tracking_uri)
    with answering(tracking_uri):
        run = client.get_model_version(name, version).run_id
        now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
        figures = check.figures | {"passed": check.passed, "reasons": check.reasons, "at": now}
        client.log_dict(str(run), figures, FIGURES)
        tags = {
            "deploy_check": "passed" if check.passed else "failed",
            "deploy_check_reasons": "\n".join(check.reasons)[:LONGEST],
            "deploy_check_at": now,
        }
        for tag, value in tags.items():
            client.set_model_version_tag(name, version, tag, value)


@task(task_run_name="try {key} in vLLM", cache_policy=NO_CACHE)
def try_model(root: str, key: str, version: str | None, samples: int | None) -> tuple[str, Check]:
    """Tries a version (None: the candidate), stores what the trial showed, and returns the version's number."""
    from sparsemm.registry.client import model_name, registry_uri
    from sparsemm.registry.lookup import look_up

    params, name = load_params(Path(root) / "params.yaml"), model_name(key)
    uri = registry_uri(None, params, Path(root))
    entry = look_up(f"models:/{name}{f'/{version}' if version else '@candidate'}", tracking_uri=uri)
    assert entry.resolved is not None
    python = Path(os.environ.get(PYTHON) or Path(root) / ".venv-vllm" / "bin" / "python")
    check = try_version(params, key, Path(root), entry.path, python, samples)
    store(uri, name, entry.resolved.version, check)
    return entry.resolved.version, check


@flow(flow_run_name="deploy-check {key}", log_prints=True)
def deploy_check(
    key: str, root: str = ".", version: str | None = None, samples: int | None = None, promote: bool = False
) -> bool:
    """Tries a version's score table in a real vLLM engine, and tells whether it may be served.

    The engine's full answers have to be those of transformers, and its accuracy at the serving budget has to be within
    the gate. The figures are stored with the version.

    Args:
        key: model key of params.yaml, whose stages have run.
        root: the repository.
        version: version number; by default the candidate.
        samples: pages of every task; by default as many as are evaluated.
        promote: whether a version that passes this and the gate becomes champion.
    """
    check_runs()
    number, check = try_model(root, key, version, samples)
    title = f"# {key} version {number}: {'may be served with vLLM' if check.passed else 'must not be served with vLLM'}"
    text = "\n".join([title, "", *(f"- {reason}" for reason in check.reasons)])
    create_markdown_artifact(text, key=f"deploy-check-{slug(key)}")
    get_run_logger().info("%s\n%s", text, json.dumps(check.figures))
    if check.passed and promote:
        return promote_model(root, key, number)
    return check.passed
