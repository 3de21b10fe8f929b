"""Answer tokens tied to record entries."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from sparsemm.align import align_answer, align_ordered, align_paper, cut_at_end, run, token_spans
from sparsemm.chase.stage import run as chase
from sparsemm.datasets.records import Entry, Record, write_records
from sparsemm.datasets.synthetic import PageStyle, draw_record
from sparsemm.errors import AlignError
from sparsemm.params import ModelParams, load_params
from sparsemm.scores import ScoreTable
from sparsemm.training.architectures import build_tokenizer

TOKENIZER = build_tokenizer("tiny-qwen2-vl")


def entries(*texts):
    return [Entry(text, (0.0, 0.0, 1.0, 1.0), "word") for text in texts]


def said(text):
    return TOKENIZER(text, add_special_tokens=False).input_ids


def owners(text, *words):
    """Entry of every character token of `text`, - for none."""
    pairs = dict(align_ordered(said(text), TOKENIZER, entries(*words))[0])
    return "".join(str(pairs.get(i, "-")) for i in range(len(said(text))))


class Pieces:
    """A tokenizer whose tokens are given strings, as bytes."""

    def __init__(self, *pieces):
        self.pieces = pieces

    def decode(self, ids, **_):
        return b"".join(self.pieces[i] for i in ids).decode("utf-8", errors="replace")

    def convert_ids_to_tokens(self, value):
        return self.pieces[value].decode("utf-8", errors="replace")


def test_characters_belong_to_their_words_and_blanks_to_none():
    assert owners("ab xyz", "ab", "xyz") == "00-111"


def test_repeated_words_are_resolved_by_order():
    assert owners("ab cd ab", "ab", "cd", "ab") == "00-11-22"
    assert owners("cd ab", "ab", "cd", "ab") == "11-22"


def test_misread_missing_and_invented_words_are_left_out_and_counted():
    pairs, words, found = align_ordered(said("ab xxx ef qq"), TOKENIZER, entries("ab", "cd", "ef"))
    assert (words, found) == (3, 2)
    assert {entry for _, entry in pairs} == {0, 2}
    assert owners("ab xxx ef qq", "ab", "cd", "ef") == "00-----22---"[: len(said("ab xxx ef qq"))]


def test_entries_of_several_words():
    assert owners("ab cd ef", "ab cd", "ef") == "00-00-11"


def test_empty_answers_and_empty_pages():
    assert align_ordered([], TOKENIZER, entries("ab")) == ([], 1, 0)
    assert align_ordered(said("ab"), TOKENIZER, []) == ([], 0, 0)


def test_tokens_with_a_leading_blank_belong_to_the_word_after_it():
    tokenizer = Pieces(b"inv", b"oice", b" total", b" 12")
    pairs, _, found = align_ordered([0, 1, 2, 3], tokenizer, entries("invoice", "total", "12"))
    assert pairs == [(0, 0), (1, 0), (2, 1), (3, 2)] and found == 3


def test_a_token_over_two_words_is_left_out():
    tokenizer = Pieces(b"a", b"b c", b"d")
    assert align_ordered([0, 1, 2], tokenizer, entries("ab", "cd"))[0] == [(0, 0), (2, 1)]


def test_bytes_of_one_character_share_its_place():
    tokenizer = Pieces(b"\xe4", b"\xb8", b"\xad", b"x")
    text, spans = token_spans([0, 1, 2, 3], tokenizer)
    assert text == "中x" and spans == [(0, 1), (0, 1), (0, 1), (1, 2)]
    pairs, _, _ = align_ordered([0, 1, 2, 3], tokenizer, entries("中x"))
    assert pairs == [(0, 0), (1, 0), (2, 0), (3, 0)]
    assert token_spans([0, 1], tokenizer)[1] == [(0, 0), (0, 0)]  # never became a character


def test_paper_mode_wants_a_substring_of_exactly_one_entry():
    tokenizer = Pieces(b"to", b"tal", "▁in".encode(), b"", b"x")
    words = entries("total", "tomato", "in")
    assert align_paper([0, 1, 2, 3, 4], tokenizer, words, raw_pieces=False) == [(1, 0)]
    spaced = Pieces(b" in")
    assert align_paper([0], spaced, words, raw_pieces=False) == []  # a blank in front never matches
    assert align_paper([1, 0, 1], tokenizer, words, raw_pieces=True) == [(0, 0), (2, 0)]  # order is not looked at


def test_a_long_answer_of_repeated_words():
    text = " ".join(["ab cd"] * 200)
    pairs, words, found = align_ordered(said(text), TOKENIZER, entries(*["ab", "cd"] * 200))
    assert words == found == 400 and [e for _, e in pairs] == sorted(e for _, e in pairs)
    assert len({e for _, e in pairs}) == 400


def test_answers_are_cut_at_their_end():
    assert cut_at_end([5, 6, 2, 7], {2}) == [5, 6]
    assert cut_at_end([], {2}) == [] and cut_at_end([2], {2}) == []


def test_unknown_mode_is_refused():
    with pytest.raises(AlignError, match="ordered or paper"):
        align_answer("x", [], TOKENIZER, [], "loose", "qwen2_vl")


def odd(name, width, height):
    """A record no processor was made for."""
    entry = Entry("x", (0.0, 0.0, float(width), float(height)), "word")
    return Record(name, Image.new("RGB", (width, height)), (entry,), "test", "none")


def stage(tiny, root, name, records, **chase_params):
    """The params of a stage over these records."""
    checkpoint = root / "checkpoint"
    for part in tiny(name):
        part.save_pretrained(checkpoint)
    write_records(root / "artifacts" / "datasets" / "calibration.parquet", records)
    base = load_params(Path(__file__).parents[1] / "params.yaml")
    family = json.loads((checkpoint / "config.json").read_text())["model_type"]
    entry = ModelParams(checkpoint=str(checkpoint), family=family)
    given = base.chase.model_copy(update={"max_new_tokens": 24, "batch_size": 3} | chase_params)
    return base.model_copy(update={"models": {"m": entry}, "chase": given})


@pytest.mark.parametrize("answer", ["greedy", "ground_truth"])
@pytest.mark.parametrize("name", ["tiny-qwen2-vl", "tiny-llava-next-vicuna"])
def test_an_image_the_model_cannot_take_sinks_nothing_else(tiny, tmp_path, capsys, name, answer):
    pages = [draw_record("calibration", 0, i, PageStyle(1, 4, (2, 4))) for i in range(3)]
    records = [pages[0], odd("dot", 1, 1), odd("wire", 20_000, 10), *pages[1:]]
    given = stage(tiny, tmp_path, name, records, answer=answer, max_bad=0.4)
    run(given, "m", tmp_path)
    table = pq.read_table(tmp_path / "artifacts" / "align" / "m.parquet").to_pylist()
    refused = [row["sample_id"] for row in table if row["refused"]]
    assert [row["sample_id"] for row in table] == [record.id for record in records]
    assert set(refused) <= {"dot", "wire"} and all(not row["answer_ids"] for row in table if row["refused"])
    assert json.loads((tmp_path / "artifacts" / "align" / "m.json").read_text())["refused"] == len(refused)
    assert capsys.readouterr().out.count("left out record") == len(refused)
    if name == "tiny-qwen2-vl":
        assert "wire" in refused  # 2000 times as wide as high
    chase(given, "m", tmp_path)
    assert ScoreTable.load(tmp_path / "artifacts" / "scores" / "m.safetensors").header["samples"] == 5


def test_too_many_such_images_are_an_error_that_leaves_nothing(tiny, tmp_path):
    records = [draw_record("calibration", 0, 0, PageStyle(1, 4, (2, 4))), odd("wire", 20_000, 10)]
    given = stage(tiny, tmp_path, "tiny-qwen2-vl", records, answer="ground_truth")
    with pytest.raises(AlignError, match="cannot take 1 of 2 records, the first: record 'wire'.*max_bad, 0.05"):
        run(given, "m", tmp_path)
    assert not (tmp_path / "artifacts" / "align").exists()
