"""Writes small offline versions of the paper's tasks: `python -m sparsemm.evaluate.tasks.twins FOLDER`.

Their task files include lmms-eval's own, so prompts, post-processing and metrics are the real ones. Only the documents
are pages of this project, in the columns of the published data sets.
"""

from __future__ import annotations

import io
import json
import random
import sys
from pathlib import Path
from typing import Any

from sparsemm.datasets.records import Record
from sparsemm.datasets.synthetic import PageStyle, draw_record, page_text, questions
from sparsemm.evaluate.tasks.published import PUBLISHED, TURN, task_config, write_task
from sparsemm.files import atomic_path

PEOPLE = 10  # number of people who answered a question of TextVQA or VQAv2


def _row(task: str, index: int, record: Record, rng: random.Random) -> dict[str, Any]:
    """Returns one document without its image."""
    chosen = rng.choice(questions(record))
    question, answer, text = chosen.prompt, chosen.answer, page_text(record)
    if task == "docvqa_val":
        return {"questionId": str(index), "question": question, "answers": [answer, answer.upper()]}
    if task == "ocrbench":
        kind = ("Regular Text Recognition", "Doc-oriented VQA", "Handwritten Mathematical Expression Recognition")
        about = {"dataset": "HME100k" if index % 3 == 2 else "page", "question_type": kind[index % 3]}
        return about | {"question": question, "answer": [answer]}
    if task == "textvqa_val":
        return {"question_id": index, "question": question, "answers": [answer] * 7 + ["unclear"] * 3}
    if task == "chartqa":
        number = str(rng.randint(100, 999)) if index % 2 else answer
        return {"type": ("augmented_test", "human_test")[index % 2], "question": question, "answer": number}
    if task == "textcaps_val":
        captions = [f"a page that says {text}", f"the words {text}", f"a form with {answer} on it"]
        return {"question_id": str(index), "image_id": f"page{index}", "question": "", "caption_str": captions}
    if task == "mmbench_en_dev":
        return _options(index, question, answer, rng)
    if task == "gqa":
        return {"id": str(index), "imageId": f"page{index}", "question": question, "answer": answer}
    answers = [{"answer": answer, "answer_confidence": "yes", "answer_id": i + 1} for i in range(PEOPLE)]
    return {"question_id": index, "image_id": index, "question": question, "answers": answers}


def _options(index: int, question: str, answer: str, rng: random.Random) -> dict[str, Any]:
    """Returns a question with options; every second document permutes the options of the one before it."""
    options = dict(zip("ABCD", [answer, "none", "all", "unclear"], strict=True))
    right = "A"
    if index % 2:
        right, options = "B", dict(zip("ABCD", ["unclear", answer, "none", "all"], strict=True))
    about = {"hint": "nan", "category": "ocr", "L2-category": "reading", "source": "pages", "split": "dev"}
    number = index // 2 + (TURN if index % 2 else 0)
    return {"index": number, "question": question, "answer": right, **options, **about}


def documents(task: str, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Returns documents in the columns of a published data set, with `image` as PNG bytes. They are deterministic.

    Args:
        task: one of `PUBLISHED`.
        count: number of documents.
        seed: seed of pages and questions.
    """
    rows = []
    for index in range(count):
        page = index // 2 if task == "mmbench_en_dev" else index  # a permuted copy shows the same page
        record = draw_record("evaluation", seed, page, PageStyle())
        buffer = io.BytesIO()
        record.image.save(buffer, format="PNG")
        row = _row(task, index, record, random.Random(f"{task}/{seed}/{page}"))
        rows.append(row | {"image": {"bytes": buffer.getvalue(), "path": f"page{page}.png"}})
    return rows


def write(folder: Path, count: int = 4, seed: int = 0) -> None:
    """Writes <task>/rows.parquet and tasks/<task>_twin.yaml for every task of the paper.

    `evaluate.source` reads the former, `lmms_eval --include_path folder/tasks` the latter.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Features, Image

    for task in PUBLISHED:
        table = pa.Table.from_pylist(documents(task, count, seed))
        features = {**Features.from_arrow_schema(table.schema), "image": Image()}
        about = {"info": {"features": Features(features).to_dict()}}  # or `datasets` would not decode images
        path = folder / task / "rows.parquet"
        with atomic_path(path) as temporary:
            pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(about)}), temporary)
        write_task(task_config(task, f"{task}_twin", [path], folder / "datasets"), folder / "tasks")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
