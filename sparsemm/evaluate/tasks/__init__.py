"""Tasks as lmms-eval loads them: two of this project over its own pages, and the paper's."""

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
    """One document of a task: its id, the image it is about (empty: one of its own), the answers, and its value."""

    id: str
    page: str
    prediction: str
    answer: str
    value: float


@dataclass(frozen=True)
class Task:
    """A task of lmms-eval with its requests built.

    Attributes:
        name: as in params.yaml.
        ids: of the documents, in order.
        questions: one per document.
    """

    name: str
    ids: list[str]
    questions: list[Question]
    _task: Any

    @property
    def metric(self) -> str:
        """What a document's value is called in tables."""
        return METRICS[self.name]

    @cached_property
    def pages(self) -> list[str]:
        """A hash of what each question shows: several questions are asked about some images."""
        return [_digest(one.images()) for one in self.questions]

    def score(self, texts: list[str]) -> list[Scored]:
        """The value of every document by the task's own filters, post-processing and metric.

        Args:
            texts: one answer per question.

        Raises:
            DataError: if the metric needs what is not installed.
        """
        requests = self._task.instances
        for request, text in zip(requests, texts, strict=True):
            request.resps, request.filtered_resps = [text], {}
        self._task.apply_filters()
        said = [next(iter(request.filtered_resps.values())) for request in requests]
        docs = [self._task.eval_docs_no_media[request.doc_id] for request in requests]
        column = "answer" if self.name in LOCAL else PUBLISHED[self.name].reference
        answers = [doc[column] if isinstance(doc[column], str) else json.dumps(doc[column]) for doc in docs]
        metrics = [self._task.process_results(doc, [one]) for doc, one in zip(docs, said, strict=True)]
        if self.name in LOCAL:
            each: list[float | None] = [float(one[LOCAL[self.name]]) for one in metrics]
        else:
            each = values(self.name, metrics)
        rows = zip(self.ids, self.pages, said, answers, each, strict=True)
        return [Scored(i, page, str(text), answer, value) for i, page, text, answer, value in rows if value is not None]


def _digest(images: list[Image.Image]) -> str:
    digest = hashlib.sha256()
    for image in images:
        digest.update(f"{image.mode} {image.size}".encode() + image.tobytes())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """lmms-eval and `datasets` without their log lines and bars: progress is ours."""
    import logging

    import datasets
    from loguru import logger

    logger.remove()
    logging.getLogger("datasets").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    with contextlib.redirect_stderr(io.StringIO()):
        yield


def load(config: dict[str, Any], name: str, folder: Path, limit: int, max_new_tokens: int) -> Task:
    """Let lmms-eval load a task file and build the requests of its first `limit` documents.

    Args:
        config: of the task file, which is written to `folder`.
        name: as in params.yaml.
        max_new_tokens: where the task does not say.
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
    """One of the paper's tasks, its documents in parquet files, or on the hub if there are none."""
    config = task_config(name, f"sparsemm_{name}", files, folder / "datasets")
    return load(config, name, folder / "tasks", limit, max_new_tokens)
