"""Tie answer tokens to the page: token -> characters -> word -> record entry; and the stage that gets the answers."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from sparsemm.datasets.records import Entry, Record, read_records
from sparsemm.errors import AlignError
from sparsemm.files import artifacts, atomic_path, sha256_file, work_folder, write_json
from sparsemm.params import ModelParams, Params
from sparsemm.progress import progress
from sparsemm.prompts import build_inputs, by_length, visual_lengths


@dataclass(frozen=True)
class Alignment:
    """One sample's answer and which of its tokens belong to which entry.

    Attributes:
        sample_id: id of the record.
        answer_ids: token ids of the answer, without the end-of-sequence token.
        token_index: indices into `answer_ids`, rising.
        entry_index: index into the record's entries, one per `token_index`.
        words: words in the record.
        words_found: words of the record that the answer has in the same order.
    """

    sample_id: str
    answer_ids: list[int]
    token_index: list[int]
    entry_index: list[int]
    words: int
    words_found: int


def token_spans(ids: Sequence[int], tokenizer: Any) -> tuple[str, list[tuple[int, int]]]:
    """Decoded text of `ids` and the half-open character span each token adds to it.

    A token that ends inside a character (byte-level vocabularies) shares the span of the token that completes it.
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
    spans += [(len(text), len(text))] * pending  # bytes that never became a character cover nothing
    return text, spans


def _words(text: str) -> list[tuple[str, int, int]]:
    found, at = [], 0
    for word in text.split():
        start = text.index(word, at)
        at = start + len(word)
        found.append((word, start, at))
    return found


def align_ordered(
    ids: Sequence[int], tokenizer: Any, entries: Sequence[Entry]
) -> tuple[list[tuple[int, int]], int, int]:
    """Align by character offsets and sequence alignment of words.

    Words of the answer are matched with the words of the entries in order, so repeated words are told apart by
    their place; misread words match nothing. A token that touches words of two entries is left out.

    Returns:
        (token index, entry index) pairs, rising in the token; words in the entries; words found.
    """
    text, spans = token_spans(ids, tokenizer)
    said = _words(text)
    wanted = [(word, i) for i, entry in enumerate(entries) for word in entry.text.split()]
    matcher = SequenceMatcher(None, [word for word, _, _ in said], [word for word, _ in wanted], autojunk=False)
    owner: dict[int, int] = {}  # character -> entry
    found = 0
    for block in matcher.get_matching_blocks():
        for k in range(block.size):
            _, start, end = said[block.a + k]
            owner.update(dict.fromkeys(range(start, end), wanted[block.b + k][1]))
            found += 1
    pairs = []
    for token, (start, end) in enumerate(spans):
        owners = {owner.get(c) for c in range(start, end) if not text[c].isspace()}
        if len(owners) == 1 and (entry := owners.pop()) is not None:
            pairs.append((token, entry))
    return pairs, len(wanted), found


def align_paper(
    ids: Sequence[int], tokenizer: Any, entries: Sequence[Entry], raw_pieces: bool
) -> list[tuple[int, int]]:
    """The published rule: a token belongs to an entry if its text is a substring of that entry alone.

    Args:
        raw_pieces: compare the vocabulary's own pieces, so that word-initial SentencePiece tokens never match, as
            the public code does for LLaVA; otherwise the decoded text of the single token.

    Returns:
        (token index, entry index) pairs; order and ground truth are not looked at.
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
    """Align one answer; `mode` is "ordered" or "paper".

    Raises:
        AlignError: if the mode is unknown.
    """
    if mode not in ("ordered", "paper"):
        raise AlignError(f"mode {mode!r} is unknown", hint="use ordered or paper")
    pairs, words, found = align_ordered(ids, tokenizer, entries)
    if mode == "paper":
        pairs = align_paper(ids, tokenizer, entries, raw_pieces=family == "llava_next")
    return Alignment(sample_id, [int(i) for i in ids], [t for t, _ in pairs], [e for _, e in pairs], words, found)


def cut_at_end(ids: Sequence[int], end: set[int]) -> list[int]:
    """The ids before the first one that ends the answer."""
    result = []
    for value in ids:
        if int(value) in end:
            break
        result.append(int(value))
    return result


def greedy_answers(
    model: Any, processor: Any, records: list[Record], prompt: str, max_new_tokens: int
) -> list[list[int]]:
    """The model's own greedy answer tokens to `prompt` over each record's image, as one batch, end token cut off."""
    import torch

    inputs = build_inputs(processor, [[r.image] for r in records], [prompt] * len(records)).to(model.device)
    inputs = {k: v.to(model.dtype) if v.is_floating_point() else v for k, v in inputs.items()}
    with torch.inference_mode():
        out = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
    end = model.generation_config.eos_token_id
    ends = set(end if isinstance(end, list) else [end]) | {processor.tokenizer.pad_token_id}
    return [cut_at_end(row, ends) for row in out[:, inputs["input_ids"].shape[1] :].tolist()]


def _shard(model: Any, processor: Any, records: list[Record], params: Params, family: str) -> list[Alignment]:
    given = params.chase
    answers: dict[int, list[int]] = {}
    if given.answer == "ground_truth":
        texts = [" ".join(entry.text for entry in record.entries) for record in records]
        answers = {i: processor.tokenizer(text, add_special_tokens=False).input_ids for i, text in enumerate(texts)}
    else:
        lengths = visual_lengths(processor, [record.image.size for record in records])
        for batch in by_length(lengths, given.batch_size):
            chosen = [records[i] for i in batch]
            said = greedy_answers(model, processor, chosen, given.prompt, given.max_new_tokens)
            answers.update(zip(batch, said, strict=True))
    return [
        align_answer(record.id, answers[i], processor.tokenizer, record.entries, given.align, family)
        for i, record in enumerate(records)
    ]


def run(params: Params, key: str, root: Path = Path("."), dataset: str | None = None) -> None:
    """Get an answer for every calibration record, align it, and write artifacts/align/<key>.parquet and .json.

    Stopped and run again, it goes on after the last whole shard.

    Args:
        dataset: of `robustness`, whose files are in artifacts/align/also/<dataset>; None for `chase.dataset`.

    Raises:
        AlignError: if not one token of any answer could be aligned.
        ParamsError: if the model or the data set is unknown.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from sparsemm.models import load_model

    params = params.over(dataset)
    given, entry = params.chase, params.model(key)
    folder = artifacts(root, "align", dataset)
    source = root / "artifacts" / "datasets" / f"{given.dataset}.parquet"
    records = read_records(source)
    shards = [records[i : i + given.shard_size] for i in range(0, len(records), given.shard_size)]
    work = work_folder(root, "align", key, dataset) / _identity(entry, params, source)
    paths = [work / f"{i:05d}.json" for i in range(len(shards))]
    todo = [(path, shard) for path, shard in zip(paths, shards, strict=True) if not path.is_file()]
    if todo:
        model, processor = load_model(entry)
        for path, shard in progress(todo, len(todo), f"align {key} (shards of {given.shard_size})"):
            write_json(path, [vars(a) for a in _shard(model, processor, shard, params, entry.family)])
    done = [Alignment(**row) for path in paths for row in json.loads(path.read_text(encoding="utf-8"))]
    aligned = sum(len(a.token_index) for a in done)
    tokens, words = sum(len(a.answer_ids) for a in done), sum(a.words for a in done)
    if aligned == 0:
        raise AlignError(
            "no answer token belongs to any word of its page",
            where=f"model {key}, dataset {given.dataset}",
            hint="can the model read these pages with this prompt? See chase.prompt and chase.answer",
        )
    columns = ("sample_id", "answer_ids", "token_index", "entry_index")
    lists = pa.list_(pa.int64())
    table = pa.table(
        {name: [getattr(a, name) for a in done] for name in columns},
        schema=pa.schema([("sample_id", pa.string()), *((name, lists) for name in columns[1:])]),
    )
    with atomic_path(folder / f"{key}.parquet") as temporary:
        pq.write_table(table, temporary, compression="zstd")
    metrics = {
        "samples": len(done),
        "tokens": tokens,
        "tokens_aligned": aligned,
        "share_aligned": round(aligned / max(tokens, 1), 6),
        "words": words,
        "words_found": sum(a.words_found for a in done),
        "share_found": round(sum(a.words_found for a in done) / max(words, 1), 6),
    }
    write_json(folder / f"{key}.json", metrics)
    shutil.rmtree(work.parent, ignore_errors=True)


def _identity(entry: ModelParams, params: Params, source: Path) -> str:
    parts = [entry.model_dump(exclude={"note"}), params.chase.model_dump(), sha256_file(source)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
