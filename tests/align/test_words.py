"""Answer tokens tied to record entries."""

from __future__ import annotations

from sparsemm.align.words import align_ordered, align_paper, token_spans
from sparsemm.datasets.records import Entry
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
