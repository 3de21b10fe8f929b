"""Tasks that lmms-eval loads: the two of this project over its own pages, and those of the paper."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from sparsemm.compat import define_missing_torchvision_operators
from sparsemm.evaluate.questions import Question, question
from sparsemm.evaluate.tasks.published import PUBLISHED, task_config, values, write_task

LOCAL = {"read": "word_accuracy", "qa": "exact_match"}
METRICS = LOCAL | {name: task.metric for name, task in PUBLISHED.items()}


@dataclass(frozen=True)
class Scored:
    """A scored document: its id, the image that it is about (empty: one of its own), both answers, and its value."""

    id: str
    page: str
    prediction: str
    answer: str
    value: float


@dataclass(frozen=True)
class Task:
    """A task of lmms-eval with its requests.

    Attributes:
        name: name in params.yaml.
        ids: ids of the documents, in order.
        questions: one question per document.
    """

    name: str
    ids: list[str]
    questions: list[Question]
    _task: Any

    @property
    def metric(self) -> str:
        """Returns the name of a document's value in tables."""
        return METRICS[self.name]

    @cached_property
    def pages(self) -> list[str]:
        """Returns a hash of each question's images, because several questions may be about one image."""
        return [_digest(one.images()) for one in self.questions]

    def score(self, texts: list[str]) -> list[Scored]:
        """Returns the value of every document by the task's own filters, post-processing and metric.

        Args:
            texts: one answer per question.

        Raises:
            DataError: if the metric needs a program that is not installed.
        """
        requests = self._task.instances
        for request, text in zip(requests, texts, strict=True):
            request.resps, request.filtered_resps = [text], {}
        self._task.apply_filters()
        predictions = [next(iter(request.filtered_resps.values())) for request in requests]
        docs = [self._task.eval_docs_no_media[request.doc_id] for request in requests]
        column = "answer" if self.name in LOCAL else PUBLISHED[self.name].reference
        answers = [doc[column] if isinstance(doc[column], str) else json.dumps(doc[column]) for doc in docs]
        metrics = [self._task.process_results(doc, [one]) for doc, one in zip(docs, predictions, strict=True)]
        if self.name in LOCAL:
            each: list[float | None] = [float(one[LOCAL[self.name]]) for one in metrics]
        else:
            each = values(self.name, metrics)
        rows = zip(self.ids, self.pages, predictions, answers, each, strict=True)
        return [Scored(i, page, str(text), answer, value) for i, page, text, answer, value in rows if value is not None]


def _digest(images: list[Image.Image]) -> str:
    digest = hashlib.sha256()
    for image in images:
        digest.update(f"{image.mode} {image.size}".encode() + image.tobytes())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hides the log lines and progress bars of lmms-eval and `datasets`."""
    import logging

    import datasets
    from loguru import logger

    logger.remove()
    logging.getLogger("datasets").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    with contextlib.redirect_stderr(io.StringIO()):
        yield


def load(config: dict[str, Any], name: str, folder: Path, limit: int, max_new_tokens: int) -> Task:
    """Lets lmms-eval load a task file and build the requests of its first `limit` documents.

    Args:
        config: contents of the task file, which is written to `folder`.
        name: name in params.yaml.
        folder: folder of the task file.
        limit: number of documents.
        max_new_tokens: used if the task does not set it.
    """
    define_missing_torchvision_operators()
    from lmms_eval.tasks import TaskManager, get_task_dict

    write_task(config, folder)
    with quiet():
        manager = TaskManager(include_path=str(folder), include_defaults=False, model_name="sparsemm")
        task = get_task_dict([config["task"]], manager)[config["task"]]
        task.build_all_requests(limit=limit, rank=0, world_size=1)
    questions = [question(request, task.dataset, max_new_tokens) for request in task.instances]
    return Task(name, [str(request.doc_id) for request in task.instances], questions, task)


def load_published(name: str, files: list[Path] | None, folder: Path, limit: int, max_new_tokens: int) -> Task:
    """Loads one of the paper's tasks, with documents from parquet files or, without files, from the hub."""
    config = task_config(name, f"sparsemm_{name}", files, folder / "datasets")
    return load(config, name, folder / "tasks", limit, max_new_tokens)
