"""The tasks of the paper, with lmms-eval's names, prompts, post-processing and metrics."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

import yaml

from sparsemm import fetch
from sparsemm.errors import DataError
from sparsemm.files import atomic_path

TURN = 1_000_000  # in MMBench, a copy with permuted options has the question's number plus a multiple of this


@dataclass(frozen=True)
class Published:
    """A task file of lmms-eval.

    Attributes:
        file: path below lmms-eval's tasks, or an absolute path.
        split: split of the documents.
        metric: name of a document's value in tables.
        reference: column with the right answer.
        dropped: keys of the task file that local documents do not need.
    """

    file: str
    split: str
    metric: str
    reference: str
    dropped: tuple[str, ...] = ()


PUBLISHED = {
    "docvqa_val": Published("docvqa/docvqa_val.yaml", "validation", "anls", "answers"),
    "ocrbench": Published("ocrbench/ocrbench.yaml", "test", "ocrbench_accuracy", "answer"),
    "textvqa_val": Published("textvqa/textvqa_val.yaml", "validation", "exact_match", "answers"),
    "chartqa": Published("chartqa/chartqa.yaml", "test", "relaxed_overall", "answer"),
    "textcaps_val": Published("textcaps/textcaps_val.yaml", "val", "textcaps_CIDEr", "caption_str"),
    # The file without "static" asks a model of OpenAI about answers from which no option can be inferred.
    "mmbench_en_dev": Published("mmbench/mmbench_en_dev_static.yaml", "dev", "gpt_eval_score", "answer"),
    # Its process_docs downloads the images from the hub; local documents hold theirs.
    "gqa": Published("gqa/gqa.yaml", "testdev", "exact_match", "answer", ("process_docs",)),
    "vqav2_val": Published("vqav2/vqav2_val.yaml", "validation", "exact_match", "answers"),
}


def task_config(task: str, name: str, files: Sequence[Path] | None, cache: Path | None = None) -> dict[str, Any]:
    """Returns a task file that includes lmms-eval's own and may take its documents from parquet files.

    Args:
        task: one of `PUBLISHED`.
        name: name of the new task.
        files: parquet files with the columns of the published data set; None for the documents on the hub.
        cache: folder in which `datasets` stores converted files.

    Raises:
        DataError: if lmms-eval is not installed.
    """
    published = PUBLISHED[task]
    package = importlib.util.find_spec("lmms_eval")
    if package is None or package.origin is None:
        hint = "`pip install '.[stages]'` in a clone of SparseMM"
        raise DataError("lmms-eval is not installed", where=task, hint=hint)
    config: dict[str, Any] = {"include": str(Path(package.origin).parent / "tasks" / published.file), "task": name}
    if files is not None:
        options: dict[str, Any] = {"data_files": {published.split: [escape(str(path.resolve())) for path in files]}}
        if cache is not None:
            options["cache_dir"] = str(cache.resolve())
        config |= {"dataset_path": "parquet", "dataset_name": None, "dataset_kwargs": options}
        config |= dict.fromkeys(published.dropped)
    return config


def write_task(config: dict[str, Any], folder: Path) -> None:
    """Writes a task file to `folder`/<task>.yaml."""
    with atomic_path(folder / f"{config['task']}.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(config), encoding="utf-8")


def task_files(task: str, source: str, root: Path) -> list[Path] | None:
    """Returns the parquet files <source>/<task>/*.parquet; None if they are on the hub. S3 is read once per revision.

    Raises:
        FetchError: if the source is not available.
        DataError: if it has no parquet file of the task.
    """
    if source == "hub":
        return None
    incoming = root / "data" / "incoming" / "tasks"
    place = fetch.open_s3(source, incoming / "work") if source.startswith("s3://") else fetch.open_local(source, root)
    names = [name for name in place.files if name.startswith(f"{task}/") and name.endswith(".parquet")]
    if not names:
        raise DataError(f"no {task}/*.parquet", where=place.address, hint="one folder per task, named like the task")
    if not source.startswith("s3://"):
        return [path for name in names if (path := place.files[name].path)]
    targets = [incoming / place.revision / name for name in names]
    for name, target in zip(names, targets, strict=True):
        if not target.is_file():
            place.files[name].save(target)
    return targets


def values(task: str, metrics: list[dict[str, Any]]) -> list[float | None]:
    """Returns the value of every document; their mean is the task's score between 0 and 1 (CIDEr: 0 to 10).

    Args:
        task: one of `PUBLISHED`.
        metrics: output of lmms-eval's process_results for each document.

    Returns:
        a value per document; None for one that only counts as part of another (permuted copies of MMBench).

    Raises:
        DataError: if textcaps_val does not find Java.
    """
    name = PUBLISHED[task].metric
    results = [one[name] for one in metrics]
    if task == "ocrbench":
        return [float(one["score"]) for one in results]
    if task == "textcaps_val":
        return _cider(results)
    if task == "mmbench_en_dev":
        return _options(results)
    return [float(one) for one in results]


def _cider(results: list[dict[str, Any]]) -> list[float | None]:
    """Returns CIDEr of every caption, with word frequencies over all references, so the mean is the corpus score."""
    if shutil.which("java") is None:
        raise DataError("the tokenizer of CIDEr needs Java", where="textcaps_val", hint="install a Java runtime")
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    references = {i: [{"caption": caption} for caption in one["answer"]] for i, one in enumerate(results)}
    captions = {i: [{"caption": one["pred"]}] for i, one in enumerate(results)}
    tokenizer = PTBTokenizer()
    _, each = Cider().compute_score(tokenizer.tokenize(references), tokenizer.tokenize(captions))
    return [float(one) for one in each]


def _options(results: list[dict[str, Any]]) -> list[float | None]:
    """Tells whether a question and all its permuted copies are answered right, by lmms-eval's static evaluation."""
    from lmms_eval.tasks.mmbench.en_utils import mmbench_evaluator

    groups: dict[int, list[dict[str, Any]]] = {}
    for one in results:
        groups.setdefault(int(one["index"]) % TURN, []).append(one)
    hits: list[float | None] = []
    for one in results:
        if int(one["index"]) >= TURN:
            hits.append(None)
            continue
        with contextlib.redirect_stdout(io.StringIO()):  # it prints a table per call
            rate, _, _ = mmbench_evaluator.eval_result(groups[int(one["index"])], eval_method="static")
        hits.append(float(rate))
    return hits
