"""The evaluate stage: measures every task, method and budget of one model, and writes tables with intervals."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsemm.budgets import load_budgets
from sparsemm.datasets.records import read_records
from sparsemm.errors import DataError
from sparsemm.evaluate.downsampled import downsampled_outcomes, downsampled_tasks
from sparsemm.evaluate.evaluator import Evaluator
from sparsemm.evaluate.rows import Arm, Outcome, Row, measured, refused_rows, rounded, write_table
from sparsemm.evaluate.tasks import LOCAL, Task, load_published
from sparsemm.evaluate.tasks.pages import documents, load_local
from sparsemm.evaluate.tasks.published import PUBLISHED, task_files
from sparsemm.files import atomic_path
from sparsemm.params import Params
from sparsemm.params.stages import EvaluateParams
from sparsemm.policies import budgets_of, is_drawn
from sparsemm.statistics import difference, estimate

Files = dict[str, list[Path] | None]  # parquet files of each of the paper's tasks; None if they are on the hub
COLUMNS = (
    "model task method budget kept_slots bytes metric value n pages ci_low ci_high "
    "diff_vs_sparsemm diff_ci_low diff_ci_high diff_vs_full diff_full_ci_low diff_full_ci_high draws"
).split()


def run(params: Params, key: str, root: Path = Path("."), limit: int | None = None) -> None:
    """Evaluates one model and writes artifacts/evaluate/<key>.csv, .json and .samples.parquet.

    With `limit`, only the first documents of every task are used, and the files go to `limited` in artifacts/work,
    because they are not the results of the stage.

    Raises:
        DataError: if an evaluation set is missing or too small, or a metric cannot run here.
        ScoreTableError: if the score table is missing or of another model.
    """
    params = params.of(key)
    config = params.evaluate
    if limit is not None:
        if limit < 1:
            raise DataError(f"limit is {limit}", hint="at least 1")
        config = config.model_copy(update={"samples": min(limit, config.samples)})
        params = params.model_copy(update={"evaluate": config})
    plan = load_budgets(root / "artifacts" / "budgets" / f"{key}.json")
    files: Files = {task: task_files(task, config.source, root) for task in config.tasks if task in PUBLISHED}
    evaluator = make_evaluator(params, key, root, plan.settings, files)
    tasks = _tasks(params, files, root, evaluator.store.folder)
    variants = {
        Arm(task, "", method, None, budget): [
            evaluator.variant(method, budget, seed=config.seed + draw) for draw in range(draws(method, config))
        ]
        for task in tasks
        for method in config.methods
        for budget in budgets_of(method, plan.budgets)
    }
    smaller = downsampled_tasks(evaluator.processor, tasks, plan.budgets) if config.downsampled else {}
    outcomes = evaluator.outcomes(tasks, variants) | downsampled_outcomes(evaluator, smaller)
    folder = root / "artifacts" / ("evaluate" if limit is None else "work/limited")
    write_results(config, key, outcomes, folder, evaluator.refused)
    if limit is None:
        evaluator.store.clear()
    else:
        shutil.rmtree(evaluator.store.folder)
        print(f"written to {folder}: the first {config.samples} documents of every task")


def make_evaluator(params: Params, key: str, root: Path, settings: Mapping[str, Any], files: Files) -> Evaluator:
    """Returns the evaluator of this stage. A stored answer stays valid if other tasks or methods are added.

    Raises:
        DataError: if documents are missing.
        ScoreTableError: if the score table is missing.
    """
    known = params.evaluate.model_dump(exclude={"tasks", "methods", "downsampled", "bootstrap", "random_seeds"})
    inputs = [_dataset(params, root)] if set(params.evaluate.tasks) & set(LOCAL) else []
    inputs += [path for paths in files.values() for path in paths or []]  # those that are not on the hub
    return Evaluator(params, key, root, "evaluate", settings, inputs, known, __name__)


def draws(method: str, config: EvaluateParams) -> int:
    """Returns how often a method is measured: several times if it is random."""
    return config.random_seeds if is_drawn(method) else 1


def _dataset(params: Params, root: Path) -> Path:
    return root / "artifacts" / "datasets" / f"{params.evaluate.dataset}.parquet"


def _tasks(params: Params, files: Files, root: Path, folder: Path) -> dict[str, Task]:
    config = params.evaluate
    result: dict[str, Task] = {}
    for task in config.tasks:
        if task in PUBLISHED:
            result[task] = load_published(task, files[task], folder, config.samples, config.max_new_tokens)
            continue
        source = _dataset(params, root)
        records = read_records(source, limit=config.samples)
        if len(records) < config.samples:
            raise DataError(f"{len(records)} records, {config.samples} needed", where=str(source))
        docs = documents(task, records, params.chase.prompt, config.seed)
        result[task] = load_local(task, docs, folder, config.max_new_tokens)
    return result


def write_results(
    config: EvaluateParams, key: str, outcomes: Mapping[Arm, Outcome], folder: Path, refused: Mapping[Arm, str]
) -> None:
    """Writes <key>.csv with bootstrap intervals, <key>.json with metrics, and <key>.samples.parquet with answers.

    A method that cannot serve one of a task's prompts at a budget has a row with the reason, and no value.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    bootstrap = config.bootstrap, config.seed
    rows: list[Row] = []
    for arm, outcome in outcomes.items():
        row: Row = dict.fromkeys(COLUMNS, "") | {"model": key, "task": arm.task, "method": arm.setting}
        row |= {"budget": "" if arm.budget is None else arm.budget, "draws": outcome.seeds}
        row |= measured(outcome, estimate(outcome.values, *bootstrap, outcome.pages))
        others = {"sparsemm": ("diff_ci", arm.budget), "full": ("diff_full_ci", None)}
        for method, (interval, budget) in others.items():
            other = outcomes.get(Arm(arm.task, "", method, None, budget))
            if other is not None and other is not outcome:
                paired = difference(outcome.values, other.values, *bootstrap, outcome.pages)
                row |= rounded(paired, f"diff_vs_{method}", interval)
        rows.append(row)
    for row in refused_rows({"model": key}, refused):
        rows.append({name: row[name] for name in ("model", "task", "budget", "refused")} | {"method": row["setting"]})
    samples = [
        {"task": arm.task, "method": arm.setting, "budget": arm.budget, "draw": draw}
        | {"id": one.id, "page": one.page, "answer": one.answer, "prediction": one.prediction, "value": one.value}
        for arm, outcome in outcomes.items()
        for draw, each in enumerate(outcome.samples)
        for one in each
    ]
    with atomic_path(folder / f"{key}.samples.parquet") as temporary:
        pq.write_table(pa.Table.from_pylist(samples), temporary)
    write_table(folder, key, COLUMNS, rows, ("task", "method"))
