"""The evaluate stage: every task, method and budget of one model; resumable per combination."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import os
import shutil
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np

from sparsemm.budgets import load_budgets
from sparsemm.datasets.records import read_records
from sparsemm.errors import DataError
from sparsemm.evaluate.metrics import bootstrap_means, interval
from sparsemm.evaluate.tasks import METRICS, documents, load_task
from sparsemm.files import atomic_path, sha256_file, write_json
from sparsemm.models import load_model
from sparsemm.params import Params
from sparsemm.progress import progress
from sparsemm.scores import ScoreTable

COLUMNS = (
    "model task method budget kept_slots bytes metric value n ci_low ci_high "
    "diff_vs_sparsemm diff_ci_low diff_ci_high diff_vs_full diff_full_ci_low diff_full_ci_high"
).split()
Outcome = dict[str, Any]  # ids, predictions, answers, values, kept: one entry per sample


def combinations(params: Params, budgets: list[int]) -> list[tuple[str, str, int | None]]:
    """(task, method, budget) in the order they run; the full cache has no budget."""
    result: list[tuple[str, str, int | None]] = []
    for task in params.evaluate.tasks:
        for method in params.evaluate.methods:
            result += [(task, method, budget) for budget in ([None] if method == "full" else budgets)]
    return result


def run(params: Params, key: str, root: Path = Path(".")) -> None:
    """Evaluate one model and write artifacts/evaluate/<key>.csv, .json and .samples.parquet.

    Raises:
        DataError: if the evaluation set is missing or too small.
        ScoreTableError: if the score table is missing or of another model.
    """
    given = params.evaluate
    entry = params.model(key)
    source = root / "artifacts" / "datasets" / f"{given.dataset}.parquet"
    records = read_records(source, limit=given.samples)
    if len(records) < given.samples:
        raise DataError(f"{len(records)} records, {given.samples} wanted", where=str(source))
    score_path = root / "artifacts" / "scores" / f"{key}.safetensors"
    plan = load_budgets(root / "artifacts" / "budgets" / f"{key}.json")
    scores = ScoreTable.load(score_path)
    identity = json.dumps(
        [entry.model_dump(), given.model_dump(), plan.settings, sha256_file(source), sha256_file(score_path)]
    )
    work = root / "artifacts" / "work" / "evaluate" / key / hashlib.sha256(identity.encode()).hexdigest()[:16]
    work.mkdir(parents=True, exist_ok=True)
    wanted = combinations(params, plan.budgets)
    missing = [one for one in wanted if not _path(work, *one).is_file()]
    if missing:
        _measure(params, key, missing, records, scores, plan.settings, work)
    outcomes = {one: json.loads(_path(work, *one).read_text(encoding="utf-8")) for one in wanted}
    write_results(params, key, outcomes, root)
    shutil.rmtree(work.parent)


def _path(work: Path, task: str, method: str, budget: int | None) -> Path:
    return work / f"{task}-{method}-{budget or 'all'}.json"


def _measure(
    params: Params,
    key: str,
    missing: list[tuple[str, str, int | None]],
    records: list[Any],
    scores: ScoreTable,
    settings: dict[str, Any],
    work: Path,
) -> None:
    os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    import datasets
    from lmms_eval.evaluator import evaluate
    from loguru import logger

    from sparsemm.evaluate.plugin import CompressedModel

    logger.remove()  # lmms-eval logs a dozen lines per call; progress is ours
    logging.getLogger("datasets").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    given = params.evaluate
    model, processor = load_model(params.model(key))
    scores.check_model(model.config)
    lm = CompressedModel(
        model,
        processor,
        scores,
        batch_size=given.batch_size,
        window=settings["window"],
        rho=settings["rho"],
        mode=settings["mode"],
        pooling_kernel=given.pooling_kernel,
        seed=given.seed,
    )
    lm.max_new_tokens = given.max_new_tokens
    tasks = {
        task: load_task(task, documents(task, records, params.chase.prompt, given.seed), work)
        for task in sorted({task for task, _, _ in missing})
    }
    lm.task_dict = {f"sparsemm_{task}": loaded.dataset for task, loaded in tasks.items()}
    for task, method, budget in progress(missing, len(missing), f"evaluate {key}"):
        lm.use(method, budget or 0)
        with redirect_stderr(io.StringIO()):  # three bars of lmms-eval per combination; progress is ours
            results = evaluate(lm, {f"sparsemm_{task}": tasks[task]}, bootstrap_iters=0, process_docs_parallel=1)
        samples = sorted(results["samples"][f"sparsemm_{task}"], key=lambda sample: sample["doc_id"])
        outcome: Outcome = {
            "ids": [records[s["doc_id"]].id for s in samples],
            "predictions": [s["filtered_resps"][0] for s in samples],
            "answers": [s["target"] for s in samples],
            "values": [float(s[METRICS[task]]) for s in samples],
            "kept": lm.kept,
            "slot_bytes": lm.slot_bytes(),
            "heads": int(np.prod(scores.to_kv(scores.header["num_kv_heads"]).shape)),
        }
        write_json(_path(work, task, method, budget), outcome)


def write_results(params: Params, key: str, outcomes: dict[tuple[str, str, int | None], Outcome], root: Path) -> None:
    """Rows with 95 % bootstrap intervals, paired over samples, as CSV, metrics JSON and one row per sample."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    given = params.evaluate
    rows: list[dict[str, Any]] = []
    metrics: dict[str, Any] = {}
    for task in given.tasks:
        mine = {one[1:]: outcome for one, outcome in outcomes.items() if one[0] == task}
        names = list(mine)
        values = np.array([mine[name]["values"] for name in names], dtype=np.float64)
        means = bootstrap_means(values, given.bootstrap, given.seed)
        index = {name: i for i, name in enumerate(names)}
        for name, outcome in mine.items():
            method, budget = name
            i = index[name]
            kept = float(np.mean(outcome["kept"]))
            row: dict[str, Any] = dict.fromkeys(COLUMNS, "")
            low, high = interval(means[i])
            row |= {
                "model": key,
                "task": task,
                "method": method,
                "budget": "" if budget is None else budget,
                "kept_slots": round(kept / outcome["heads"], 4),
                "bytes": round(kept * outcome["slot_bytes"]),
                "metric": METRICS[task],
                "value": round(float(values[i].mean()), 6),
                "n": values.shape[1],
                "ci_low": round(low, 6),
                "ci_high": round(high, 6),
            }
            others = {"diff": ("sparsemm", budget), "diff_full": ("full", None)}
            for prefix, other in others.items():
                if other in index and other != name:
                    j = index[other]
                    low, high = interval(means[i] - means[j])
                    row["diff_vs_full" if prefix == "diff_full" else "diff_vs_sparsemm"] = round(
                        float((values[i] - values[j]).mean()), 6
                    )
                    row[f"{prefix}_ci_low"], row[f"{prefix}_ci_high"] = round(low, 6), round(high, 6)
            rows.append(row)
            metrics.setdefault(task, {}).setdefault(method, {})[str(budget or "all")] = row["value"]
    folder = root / "artifacts" / "evaluate"
    samples = [
        {"task": task, "method": method, "budget": budget, "id": i, "answer": a, "prediction": p, "value": v}
        for (task, method, budget), o in outcomes.items()
        for i, a, p, v in zip(o["ids"], o["answers"], o["predictions"], o["values"], strict=True)
    ]
    with atomic_path(folder / f"{key}.samples.parquet") as temporary:
        pq.write_table(pa.Table.from_pylist(samples), temporary)
    with atomic_path(folder / f"{key}.csv") as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    write_json(folder / f"{key}.json", metrics)
