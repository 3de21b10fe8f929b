"""Aligns the tokens of one answer with the entries of its record, through characters and words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from sparsemm.datasets.records import Entry


@dataclass(frozen=True)
class Alignment:
    """The answer to one sample, and the entries that its tokens belong to."""

    sample_id: str  # id of the record
    answer_ids: list[int]  # token ids of the answer, without the end-of-sequence token
    token_index: list[int]  # indices into `answer_ids`, rising
    entry_index: list[int]  # index into the record's entries, one per `token_index`
    words: int  # words in the record
    words_found: int  # words of the record that the answer has in the same order
    refused: str = ""  # why the model cannot process the record, which then has no answer; else ""


def token_spans(ids: Sequence[int], tokenizer: Any) -> tuple[str, list[tuple[int, int]]]:
    """Returns the decoded text of `ids` and the half-open character span that each token adds to it.

    A token that ends inside a character (in byte-level vocabularies) shares the span of the token that completes it.
    """
    spans: list[tuple[int, int]] = []
    text, pending = "", 0
    for i in range(len(ids)):
        longer = tokenizer.decode(list(ids[: i + 1]), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if longer.endswith("\ufffd"):
            pending += 1
            continue
        spans += [(min(len(text), len(longer)), len(longer))] * (pending + 1)
        text, pending = longer, 0
    spans += [(len(text), len(text))] * pending  # bytes of incomplete characters cover nothing
    return text, spans


def _words(text: str) -> list[tuple[str, int, int]]:
    words, end = [], 0
    for word in text.split():
        start = text.index(word, end)
        end = start + len(word)
        words.append((word, start, end))
    return words


def align_ordered(
    ids: Sequence[int], tokenizer: Any, entries: Sequence[Entry]
) -> tuple[list[tuple[int, int]], int, int]:
    """Aligns by character offsets and sequence alignment of words.

    Words of the answer are matched with the words of the entries in order, so that repeated words are distinguished by
    their place; misread words match nothing. A token that touches words of two entries is left out.

    Returns:
        (token index, entry index) pairs, rising in the token; words in the entries; words found.
    """
    text, spans = token_spans(ids, tokenizer)
    answer = _words(text)
    page = [(word, i) for i, entry in enumerate(entries) for word in entry.text.split()]
    matcher = SequenceMatcher(None, [word for word, _, _ in answer], [word for word, _ in page], autojunk=False)
    owner: dict[int, int] = {}  # character -> entry
    matches = 0
    for block in matcher.get_matching_blocks():
        for k in range(block.size):
            _, start, end = answer[block.a + k]
            owner.update(dict.fromkeys(range(start, end), page[block.b + k][1]))
            matches += 1
    pairs = []
    for token, (start, end) in enumerate(spans):
        owners = {owner.get(c) for c in range(start, end) if not text[c].isspace()}
        if len(owners) == 1 and (entry := owners.pop()) is not None:
            pairs.append((token, entry))
    return pairs, len(page), matches


def align_paper(
    ids: Sequence[int], tokenizer: Any, entries: Sequence[Entry], raw_pieces: bool
) -> list[tuple[int, int]]:
    """Aligns by the published rule: a token belongs to an entry if its text is a substring of that entry alone.

    Args:
        ids: tokens of the answer.
        tokenizer: tokenizer of the model.
        entries: entries of the record.
        raw_pieces: whether to compare the vocabulary's own pieces, as the public code does for LLaVA, so that
            word-initial SentencePiece tokens never match; otherwise the decoded text of the single token is compared.

    Returns:
        (token index, entry index) pairs; the order of words plays no part.
    """
    pairs = []
    for token, value in enumerate(ids):
        text = tokenizer.convert_ids_to_tokens(int(value)) if raw_pieces else tokenizer.decode([int(value)])
        inside = [i for i, entry in enumerate(entries) if text in entry.text]
        if len(inside) == 1:
            pairs.append((token, inside[0]))
    return pairs


def align_answer(
    sample_id: str, ids: Sequence[int], tokenizer: Any, entries: Sequence[Entry], mode: str, family: str
) -> Alignment:
    """Aligns one answer; `mode` is "ordered" or "paper", as `chase.align`."""
    pairs, words, matched = align_ordered(ids, tokenizer, entries)
    if mode == "paper":
        pairs = align_paper(ids, tokenizer, entries, raw_pieces=family == "llava_next")
    return Alignment(sample_id, [int(i) for i in ids], [t for t, _ in pairs], [e for _, e in pairs], words, matched)
