"""The two tasks over this project's own pages: `read`, which reads a page, and `qa`, one question about it."""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from glob import escape
from pathlib import Path
from typing import Any

from PIL import Image

from sparsemm.datasets.records import Record
from sparsemm.datasets.synthetic import page_text, questions
from sparsemm.errors import DataError
from sparsemm.evaluate.questions import Question
from sparsemm.evaluate.tasks import LOCAL, Scored, Task, load
from sparsemm.evaluate.tasks.functions import SCORERS
from sparsemm.files import atomic_path


def prompt_and_answer(task: str, record: Record, read_prompt: str, seed: int) -> tuple[str, str, str]:
    """Returns prompt, reference answer and kind of a task's question about a record.

    `read` asks for the whole page, `qa` one question about it, drawn by (seed, record id).

    Raises:
        DataError: if there is no text on the page.
    """
    if not record.entries:
        raise DataError("no text on the page", where=f"record {record.id!r}")
    if task == "read":
        return read_prompt, page_text(record), "page"
    question = random.Random(f"{seed}/{record.id}").choice(questions(record))
    return question.prompt, question.answer, question.kind


@dataclass(frozen=True)
class PageTask:
    """The task `read` or `qa` without lmms-eval, for studies.

    Attributes:
        name: `read` or `qa`.
        records: pages, with one question about each.
        read_prompt, seed: as in `prompt_and_answer`.
    """

    name: str
    records: Sequence[Record]
    read_prompt: str
    seed: int

    @property
    def metric(self) -> str:
        """Returns the name of a document's value in tables."""
        return LOCAL[self.name]

    @cached_property
    def questions(self) -> list[Question]:
        """Returns one question per record.

        Raises:
            DataError: if there is no text on a page.
        """
        rows = [(record, *prompt_and_answer(self.name, record, self.read_prompt, self.seed)) for record in self.records]
        return [Question(prompt, partial(_image, record), answer=answer) for record, prompt, answer, _ in rows]

    def score(self, texts: list[str]) -> list[Scored]:
        """Returns the value of every document, from one answer per question."""
        rows = zip(self.records, texts, self.questions, strict=True)
        score = SCORERS[self.name]
        return [Scored(record.id, "", text, q.answer, score(text, q.answer)) for record, text, q in rows]


def _image(record: Record) -> list[Image.Image]:
    return [record.image]


def documents(task: str, records: list[Record], read_prompt: str, seed: int) -> list[dict[str, Any]]:
    """Returns one document per record with id, image (PNG bytes), and the question of `prompt_and_answer`.

    Raises:
        DataError: if there is no text on a page.
    """
    result = []
    for record in records:
        prompt, answer, kind = prompt_and_answer(task, record, read_prompt, seed)
        buffer = io.BytesIO()
        record.image.save(buffer, format="PNG")
        doc = {"id": record.id, "image": buffer.getvalue(), "prompt": prompt, "answer": answer, "kind": kind}
        result.append(doc)
    return result


def load_local(task: str, docs: list[dict[str, Any]], folder: Path, max_new_tokens: int) -> Task:
    """Writes the documents and a task file to `folder`, and lets lmms-eval load the task from there."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = folder.resolve()
    data = folder / f"{task}.parquet"
    with atomic_path(data) as temporary:
        pq.write_table(pa.Table.from_pylist(docs), temporary)
    config = {
        "include": str(Path(__file__).resolve().parent / f"{task}.yaml"),
        "task": f"sparsemm_{task}",
        "dataset_kwargs": {"data_files": {"test": escape(str(data))}, "cache_dir": str(folder / "datasets")},
    }
    loaded = load(config, task, folder / "tasks", len(docs), max_new_tokens)
    return replace(loaded, ids=[doc["id"] for doc in docs])
