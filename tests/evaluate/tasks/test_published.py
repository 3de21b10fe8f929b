"""The paper's tasks offline: lmms-eval's own prompts and metrics over documents made here."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from sparsemm.errors import DataError
from sparsemm.evaluate.tasks import load_published
from sparsemm.evaluate.tasks.published import PUBLISHED, task_files
from sparsemm.evaluate.tasks.twins import documents
from sparsemm.files import sha256_file


@pytest.fixture
def load(twins, tmp_path):
    def task(name, limit=4):
        return load_published(name, task_files(name, str(twins), twins), tmp_path, limit, 32)

    return task


def scores(task, texts):
    return [one.value for one in task.score(texts)]


def test_prompts_are_the_published_ones(load):
    short = "\nAnswer the question using a single word or phrase."
    ends = {
        "docvqa_val": short,
        "ocrbench": "?",
        "textvqa_val": short,
        "chartqa": "\nAnswer the question with a single word.",
        "textcaps_val": "Provide a one-sentence caption for the provided image.",
        "mmbench_en_dev": "\nAnswer with the option's letter from the given choices directly.",
        "gqa": short,
        "vqav2_val": short,
    }
    assert set(ends) == set(PUBLISHED)
    for name, end in ends.items():
        task = load(name, 2)
        assert task.ids == ["0", "1"] and all(one.prompt.endswith(end) for one in task.questions), name
        assert all(image.mode == "RGB" for one in task.questions for image in one.images())


def test_anls(load):
    right = [doc["answers"][0] for doc in documents("docvqa_val", 4)]
    assert scores(load("docvqa_val"), [right[0], right[1].upper(), right[2] + "x", "nothing like it"]) == [
        1.0,
        1.0,
        pytest.approx(1 - 1 / (len(right[2]) + 1)),
        0.0,
    ]


def test_ocrbench_counts_what_contains_the_answer(load):
    right = [doc["answer"][0] for doc in documents("ocrbench", 4)]
    task = load("ocrbench")
    for _ in range(2):  # lmms-eval adds up over everything it scored in a process
        assert scores(task, [f"It says {right[0]}.", right[1], "", right[3][:-1]]) == [1.0, 1.0, 0.0, 0.0]


def test_answers_of_ten_people(load):
    right = [doc["answers"][0] for doc in documents("textvqa_val", 4)]
    assert scores(load("textvqa_val"), [right[0], "unclear", f"the {right[2]}", "-"]) == [
        1.0,
        pytest.approx(0.9),  # three of ten said so: leave one out, it is 2 / 3 three times, else 1
        1.0,
        0.0,
    ]
    right = [doc["answers"][0]["answer"] for doc in documents("vqav2_val", 4)]
    assert scores(load("vqav2_val"), [right[0], f"{right[1]}\n", "-", f"a {right[3]}"]) == [1.0, 1.0, 0.0, 1.0]


def test_relaxed_accuracy(load):
    docs = documents("chartqa", 4)
    number, other = float(docs[1]["answer"]), float(docs[3]["answer"])
    texts = [docs[0]["answer"], f"{number * 1.04:.2f}", "-", f"{other * 1.06:.2f}"]
    assert scores(load("chartqa"), texts) == [1.0, 1.0, 0.0, 0.0]


def test_exact_match_of_gqa(load):
    right = [doc["answer"] for doc in documents("gqa", 4)]
    assert scores(load("gqa"), [right[0], right[1].upper(), f"{right[2]}.", f"{right[3]} it is"]) == [
        1.0,
        1.0,
        1.0,
        0.0,
    ]


def test_turned_copies_count_as_one_question(load):
    task = load("mmbench_en_dev")
    right = [doc["answer"] for doc in documents("mmbench_en_dev", 4)]
    assert [one.id for one in task.score(right)] == ["0", "2"] and scores(task, right) == [1.0, 1.0]
    assert scores(task, [right[0], "C", *right[2:]]) == [0.0, 1.0]
    assert scores(task, ["no idea", right[1], f"({right[2]})", f"{right[3]}."]) == [0.0, 1.0]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the tokenizer leaves its pipes open
@pytest.mark.skipif(shutil.which("java") is None, reason="the tokenizer of CIDEr needs Java")
def test_values_of_captions_average_to_ciders_score(load, tmp_path, monkeypatch):
    from lmms_eval.tasks.textcaps.utils import textcaps_cider

    docs = documents("textcaps_val", 4)
    texts = [docs[0]["caption_str"][0], "a page", f"the words {docs[2]['question']}", ""]
    result = scores(load("textcaps_val"), texts)
    assert result[0] > result[1] and result[3] == 0.0
    monkeypatch.chdir(tmp_path)  # it leaves a file for the benchmark's server
    rows = zip(docs, texts, strict=True)
    results = [{"image_id": doc["image_id"], "answer": doc["caption_str"], "pred": text} for doc, text in rows]
    assert np.mean(result) == pytest.approx(textcaps_cider(results))


def test_captions_without_java_say_what_is_missing(load, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(DataError, match="Java"):
        load("textcaps_val").score([""] * 4)


def test_a_source_without_the_task_says_what_it_wants(tmp_path):
    (tmp_path / "gqa").mkdir()
    (tmp_path / "gqa" / "readme.md").write_text("nothing yet")
    with pytest.raises(DataError, match=r"no gqa/\*.parquet"):
        task_files("gqa", ".", tmp_path)
    assert task_files("gqa", "hub", tmp_path) is None


def test_a_mirror_on_s3_is_fetched_once(twins, store, tmp_path):
    want = twins / "gqa" / "rows.parquet"
    store.upload_file(str(want), "bucket", "mirror/gqa/rows.parquet")
    (result,) = task_files("gqa", "s3://bucket/mirror", tmp_path)
    assert sha256_file(result) == sha256_file(want)
    before = result.stat().st_mtime_ns
    assert task_files("gqa", "s3://bucket/mirror", tmp_path) == [result] and result.stat().st_mtime_ns == before
