"""What the pretrained model was not trained on: how pages, questions and texts are taken, and what is stored."""

from __future__ import annotations

import json
from contextlib import contextmanager

import pytest
from PIL import Image

from benchmarks import unseen, unseen_inputs, unseen_tables
from examples.sample_pdfs import pdf
from sparsemm.assemble.base import Base
from sparsemm.datasets.records import Entry, Record
from sparsemm.datasets.synthetic import PageStyle, draw_record, page_text
from sparsemm.errors import DataError
from sparsemm.evaluate.tasks.pages import PageTask
from sparsemm.training.batches import READ_PROMPT
from tests import tiny_base
from tests.repository import ROOT


def page(*boxes):
    """A white page with a black word in every box."""
    image = Image.new("RGB", (400, 300), "white")
    entries = []
    for i, box in enumerate(boxes):
        image.paste("black", box)
        entries.append(Entry(f"w{i}", tuple(map(float, box)), "word"))
    return Record("page", image, tuple(entries), "s", "l")


def test_a_part_holds_most_whole_words():
    whole = [(200, 100, 230, 110), (240, 100, 260, 110), (200, 150, 220, 160)]
    part = unseen_inputs.crop(page((0, 0, 20, 10), *whole, (360, 100, 399, 110)))
    assert page_text(part) == "w1 w2 w3"  # not w4, which the right edge cuts
    assert part.image.size == (unseen_inputs.WIDTH, unseen_inputs.HEIGHT)


def test_pages_from_all_over_a_document_that_have_enough_words(tmp_path, monkeypatch):
    record = draw_record("evaluation", 0, 0, PageStyle(1, 6, (6, 6)))
    path = tmp_path / "a.pdf"
    path.write_bytes(pdf(record))
    monkeypatch.setattr(unseen_inputs, "WORDS", 12)
    (found,) = unseen_inputs.spread_pages(path, 1)
    assert page_text(found) == page_text(record)
    monkeypatch.setattr(unseen_inputs, "WORDS", 13)
    assert unseen_inputs.spread_pages(path, 1) == []


def test_questions_and_answers_of_the_faq():
    long = "yes " * 60
    text = f"preface\n\n1.1.\xa0Is this a\nquestion?\n\n{long}\n\n1.2. Not one\n\n{long}\n\n1.3. Short?\n\nno\n"
    assert unseen_inputs.faq(text) == [("Is this a question?", long.strip())]


def test_twenty_different_instructions_that_are_not_ours():
    assert len({unseen_inputs.letters(text) for text in unseen_inputs.INSTRUCTIONS}) == 20
    assert unseen_inputs.letters(READ_PROMPT) not in {
        unseen_inputs.letters(text) for text in unseen_inputs.INSTRUCTIONS
    }


def test_a_model_does_not_differ_from_itself_but_from_a_better_one(tmp_path):
    tiny_base.write_gguf(tmp_path / "base.gguf", tiny_base.language_model())
    tokenizer = Base(tmp_path / "base.gguf").tokenizer()
    one, other = tiny_base.language_model(0), tiny_base.language_model(1)
    texts = [(tokenizer(f"text number {i} of a list", add_special_tokens=False).input_ids, 3) for i in range(4)]
    same = unseen.compared(one, one, tokenizer, texts)
    assert same["after minus before"] == [0, 0, 0] and same["after"] == same["before"] and same["n"] == 4
    result = unseen.compared(other, one, tokenizer, texts)
    difference = result["after"][0] - result["before"][0]
    assert result["after minus before"][0] == pytest.approx(difference, abs=2e-4) and difference != 0


def test_shared_text():
    words = " ".join(map(str, range(10)))
    assert unseen_inputs.shared(words, set(unseen_inputs.sequences(words))) == 1.0
    assert unseen_inputs.shared(words + " other words", set(unseen_inputs.sequences(words))) == pytest.approx(3 / 5)


def test_parts_are_stored_one_by_one_and_not_measured_again(tmp_path, monkeypatch):
    calls = []

    @contextmanager
    def loaded(folder):
        yield tiny_base.language_model(), "processor"

    def part(name):
        def run(model, processor, documents, count):
            calls.append((name, count))
            if name == "broken":
                raise DataError("a document is missing")
            return {"count": count}

        return run

    monkeypatch.setattr(unseen, "loaded", loaded)
    monkeypatch.setattr(unseen, "PARTS", {name: (part(name), 3) for name in ("whole", "broken")})
    stored = tmp_path / "unseen.json"
    with pytest.raises(DataError, match="missing"):
        unseen.measure(tmp_path, ["whole", "broken"], stored)
    assert json.loads(stored.read_text())["whole"] == {"count": 3}
    unseen.measure(tmp_path, ["whole"], stored)
    assert calls == [("whole", 3), ("broken", 3)]


def test_methods_are_compared_at_shares_of_the_prompt(tiny):
    name = "tiny-llava-next-vicuna"
    records = [draw_record("evaluation", 3, i, PageStyle(1, 6, (3, 3))) for i in range(4)]
    scores = ROOT / "artifacts" / "scores" / f"{name}.csv"
    result = unseen.with_budgets(
        *tiny(name), scores, PageTask("read", records, READ_PROMPT, 0), ("snapkv", "random"), 24
    )
    assert result["n"] == 4 and result["budgets"] == [round(s * result["prompt_tokens"]) for s in unseen.SHARES]
    assert result["accuracy"].keys() == {"full", *(f"{m} {b}" for m in ("snapkv", "random") for b in result["budgets"])}
    assert result["accuracy"]["full"][0] > 0.8  # it was trained on such pages
    shares = [value for ends in result["accuracy"].values() for value in ends]
    assert all(0.0 <= share <= 1.0 for share in shares) and len(set(shares)) > 3
    rows = unseen_tables.long_table({"shares": [0.1, 0.2, 0.4], "part": result})
    assert len(rows) == 5 and rows[2].startswith("| part, n = 4 |") and rows[4].startswith("| | | `random` |")


def test_a_document_that_is_missing_is_named(tmp_path):
    with pytest.raises(DataError, match=r"policy\.txt"):
        unseen_inputs.at(tmp_path, "policy.txt")


def test_a_way_of_showing_pages_without_figures_has_dashes():
    row = {"n": 3, "words": 20.0, "word_accuracy": [0.5, 0.4, 0.6], "letters_alone": [1.0, 0.9, 1.0]}
    rows = unseen_tables.real_table({unseen_inputs.SHOWN[0]: row})[2:]
    assert rows[0] == f"| {unseen_inputs.SHOWN[0]} | 3 | 20.0 | 50 [40, 60] | 100 [90, 100] |"
    assert rows[1:] == [f"| {name} | - | - | - | - |" for name in unseen_inputs.SHOWN[1:]]
