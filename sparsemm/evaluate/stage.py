"""The evaluate stage: every task, method and budget of one model, from one prefill per batch of questions."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from sparsemm.budgets import load_budgets
from sparsemm.cache.served import shape_of
from sparsemm.datasets.records import read_records
from sparsemm.dependencies import identity
from sparsemm.errors import DataError
from sparsemm.evaluate.model import answer, slot_bytes
from sparsemm.evaluate.questions import batches
from sparsemm.evaluate.results import Outcome, write_results
from sparsemm.evaluate.store import Name, Store
from sparsemm.evaluate.tasks import LOCAL, Task, load_published
from sparsemm.evaluate.tasks.local import documents, load_local
from sparsemm.evaluate.tasks.published import PUBLISHED, task_files
from sparsemm.files import sha256_file
from sparsemm.models import load_model
from sparsemm.params import Params
from sparsemm.policies import budgets_of, make_policy_from, policy_class
from sparsemm.progress import progress
from sparsemm.scores import ScoreTable

Files = dict[str, list[Path] | None]  # parquet of each of the paper's tasks; None: on the hub


def run(params: Params, key: str, root: Path = Path("."), limit: int | None = None) -> None:
    """Evaluate one model and write artifacts/evaluate/<key>.csv, .json and .samples.parquet.

    With `limit` only the first documents of every task are asked about, and the files go to
    `limited` in artifacts/work instead: they are not the stage's results.

    Raises:
        DataError: if an evaluation set is missing or too small, or a metric cannot run here.
        ScoreTableError: if the score table is missing or of another model.
    """
    params = params.of(key)
    given = params.evaluate
    if limit is not None:
        if limit < 1:
            raise DataError(f"limit is {limit}", hint="at least 1")
        given = given.model_copy(update={"samples": min(limit, given.samples)})
        params = params.model_copy(update={"evaluate": given})
    score_path = root / "artifacts" / "scores" / f"{key}.safetensors"
    plan = load_budgets(root / "artifacts" / "budgets" / f"{key}.json")
    scores = ScoreTable.load(score_path)
    files: Files = {task: task_files(task, given.source, root) for task in given.tasks if task in PUBLISHED}
    work = _identity(params, key, plan.settings, [score_path, *_inputs(params, files, root)])
    store = Store(root / "artifacts" / "work" / "evaluate" / key / work)
    tasks = _tasks(params, files, root, store.folder)
    names: list[Name] = [(method, budget) for method in given.methods for budget in budgets_of(method, plan.budgets)]
    draws = {name: _draws(name, given.random_seeds) for name in names}
    shards = {task.name: batches(task.questions, given.batch_size) for task in tasks}
    _answer(params, key, tasks, [draw for name in names for draw in draws[name]], shards, scores, plan.settings, store)
    heads = int(scores.to_kv(scores.header["num_kv_heads"]).size)
    outcomes = {
        (task.name, *name): [_outcome(task, draw, shards[task.name], store, heads) for draw in draws[name]]
        for task in tasks
        for name in names
    }
    folder = root / "artifacts" / ("evaluate" if limit is None else "work/limited")
    write_results(given, key, outcomes, folder)
    shutil.rmtree(store.folder if limit is not None else store.folder.parent)
    if limit is not None:
        print(f"written to {folder}: the first {given.samples} documents of every task")


def _draws(name: Name, seeds: int) -> list[Name]:
    """A method's names in the store: random has one per draw of every page's scores, random, random.1 and so on."""
    method, budget = name
    return [name, *((f"{method}.{i}", budget) for i in range(1, seeds) if policy_class(method).drawn)]


def _dataset(params: Params, root: Path) -> Path:
    return root / "artifacts" / "datasets" / f"{params.evaluate.dataset}.parquet"


def _inputs(params: Params, files: Files, root: Path) -> list[Path]:
    """The files that hold the documents, as far as they are not on the hub."""
    found = [_dataset(params, root)] if set(params.evaluate.tasks) & set(LOCAL) else []
    return found + [path for paths in files.values() for path in paths or []]


def _identity(params: Params, key: str, settings: dict[str, Any], paths: list[Path]) -> str:
    """Name of everything an answer depends on but its task, method and budget."""
    given = params.evaluate.model_dump(exclude={"tasks", "methods", "bootstrap", "random_seeds"})
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise DataError("there is no such file", where=missing[0], hint="run the download stage first")
    digests = [sha256_file(path) for path in paths]
    return identity([params.model(key).model_dump(), params.chase.prompt, given, settings, digests], __name__)


def _tasks(params: Params, files: Files, root: Path, folder: Path) -> list[Task]:
    given = params.evaluate
    result = []
    for task in given.tasks:
        if task in PUBLISHED:
            result.append(load_published(task, files[task], folder, given.samples, given.max_new_tokens))
            continue
        source = _dataset(params, root)
        records = read_records(source, limit=given.samples)
        if len(records) < given.samples:
            raise DataError(f"{len(records)} records, {given.samples} wanted", where=str(source))
        docs = documents(task, records, params.chase.prompt, given.seed)
        result.append(load_local(task, docs, folder, given.max_new_tokens))
    return result


def _answer(
    params: Params,
    key: str,
    tasks: list[Task],
    names: list[Name],
    shards: dict[str, list[list[int]]],
    scores: ScoreTable,
    settings: dict[str, Any],
    store: Store,
) -> None:
    """Ask what is not answered yet; the model is loaded only if there is something to ask."""
    jobs = []
    for task in tasks:
        for shard in range(len(shards[task.name])):
            open_names = [name for name in names if not store.has(task.name, name, shard)]
            if open_names:
                jobs.append((task, shard, open_names))
    if not jobs:
        return
    given = params.evaluate
    model, processor = load_model(params.model(key))
    scores.check_model(model.config)
    shape, policies = shape_of(model), {}
    for name in names:
        method, _, draw = name[0].partition(".")
        options = {"pooling_kernel": given.pooling_kernel, "seed": given.seed + int(draw or 0), **settings}
        policy = make_policy_from(method, name[1], scores, options)
        policies[name] = policy if policy.drawn else policy.for_model(shape)
    for task, shard, open_names in progress(jobs, len(jobs), f"evaluate {key}"):
        asked = [task.questions[at] for at in shards[task.name][shard]]
        images, prompts = [one.images() for one in asked], [one.prompt for one in asked]
        chosen = [policies[name].for_pages(shape, shards[task.name][shard]) for name in open_names]
        said = answer(model, processor, images, prompts, chosen, asked[0].max_new_tokens)
        for name, answers in zip(open_names, said, strict=True):
            texts = [one.trim(text) for one, text in zip(asked, answers.texts, strict=True)]
            value = {"texts": texts, "kept": answers.kept, "slot_bytes": slot_bytes(model)}
            store.put(task.name, name, shard, value)


def _outcome(task: Task, name: Name, shards: list[list[int]], store: Store, heads: int) -> Outcome:
    """Answers of all batches, in the order of the documents, and what lmms-eval makes of them."""
    texts, kept = [""] * len(task.questions), [0] * len(task.questions)
    for shard, chosen in enumerate(shards):
        value = store.get(task.name, name, shard)
        for at, text, slots in zip(chosen, value["texts"], value["kept"], strict=True):
            texts[at], kept[at] = text, slots
    return Outcome(task.score(texts), kept, value["slot_bytes"], heads)
