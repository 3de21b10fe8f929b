"""The align stage: generates an answer for every calibration record and aligns it with its words, shard by shard."""

from __future__ import annotations

import json
import shutil
from itertools import takewhile
from pathlib import Path
from typing import Any

from sparsemm.align.words import Alignment, align_answer
from sparsemm.datasets.records import Record, read_records
from sparsemm.dependencies import identity
from sparsemm.errors import AlignError, DataError
from sparsemm.files import atomic_path, result_path, sha256_file, work_folder, write_json
from sparsemm.params import Params
from sparsemm.params.stages import ChaseParams
from sparsemm.progress import progress
from sparsemm.prompts import build_inputs, by_length, move_inputs, visual_lengths


def greedy_answers(
    model: Any, processor: Any, records: list[Record], prompt: str | list[str], max_new_tokens: int
) -> list[list[int]]:
    """Generates greedy answer tokens for each record's image, as one batch, and cuts off the end token.

    `prompt` is one prompt for all records, or a list with one for each.
    """
    import torch

    prompts = [prompt] * len(records) if isinstance(prompt, str) else prompt
    inputs = move_inputs(build_inputs(processor, [[r.image] for r in records], prompts), model)
    with torch.inference_mode():
        out = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
    eos = model.generation_config.eos_token_id
    ends = {*(eos if isinstance(eos, list) else [eos]), processor.tokenizer.pad_token_id}
    answers = out[:, inputs["input_ids"].shape[1] :].tolist()
    return [[*takewhile(lambda token: token not in ends, answer)] for answer in answers]


def _answers(model: Any, processor: Any, records: list[Record], chase: ChaseParams) -> list[list[int] | str]:
    """Returns the answer tokens of each record of a batch, or the reason why the model cannot process it.

    A batch that fails is repeated record by record, so that an image that the processor rejects affects no others.
    """
    try:
        if chase.answer == "greedy":
            return [*greedy_answers(model, processor, records, chase.prompt, chase.max_new_tokens)]
        build_inputs(processor, [[r.image] for r in records], [chase.prompt] * len(records))
        texts = [" ".join(entry.text for entry in record.entries) for record in records]
        return [processor.tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    except (DataError, IndexError, ValueError) as error:
        if len(records) == 1:
            return [f"record {records[0].id!r}: {error}"]
        return [answer for record in records for answer in _answers(model, processor, [record], chase)]


def align_records(
    model: Any, processor: Any, records: list[Record], chase: ChaseParams, family: str
) -> list[Alignment]:
    """Generates the model's answers to the images of some records and aligns their tokens; one for each record.

    Images of similar length share a batch. A record that the model cannot process has `refused` set.
    """
    lengths = visual_lengths(processor, [record.image.size for record in records])
    answers: dict[int, list[int] | str] = {}
    for batch in by_length(lengths, chase.batch_size):
        answers.update(zip(batch, _answers(model, processor, [records[i] for i in batch], chase), strict=True))
    return [
        Alignment(record.id, [], [], [], sum(len(entry.text.split()) for entry in record.entries), 0, answer)
        if isinstance(answer := answers[i], str)
        else align_answer(record.id, answer, processor.tokenizer, record.entries, chase.align, family)
        for i, record in enumerate(records)
    ]


def run(params: Params, key: str, root: Path = Path("."), dataset: str | None = None) -> None:
    """Generates and aligns an answer for every calibration record; writes artifacts/align/<key>.parquet and .json.

    If it was stopped, the next run resumes after the last complete shard.

    Args:
        params: the parsed params.yaml.
        key: name of the model there.
        root: root folder of the project.
        dataset: a data set of `robustness`, whose files are in artifacts/align/also/<key>; None for `chase.dataset`.

    Raises:
        AlignError: if the model cannot process more than `chase.max_bad` of the records, or no token of any answer
            could be aligned.
        ParamsError: if the model or the data set is unknown.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from sparsemm.models import load_model

    params = params.of(key).over(dataset)
    chase, entry = params.chase, params.model(key)
    source = root / "artifacts" / "datasets" / f"{chase.dataset}.parquet"
    records = read_records(source)
    shards = [records[i : i + chase.shard_size] for i in range(0, len(records), chase.shard_size)]
    settings = [entry.identity(), chase.model_dump(), sha256_file(source)]
    work = work_folder(root, "align", key, dataset) / identity(settings, __name__)
    paths = [work / f"{i:05d}.json" for i in range(len(shards))]
    todo = [(path, shard) for path, shard in zip(paths, shards, strict=True) if not path.is_file()]
    if todo:
        model, processor = load_model(entry)
        for path, shard in progress(todo, len(todo), f"align {key} (shards of {chase.shard_size})"):
            write_json(path, [vars(a) for a in align_records(model, processor, shard, chase, entry.family)])
    alignments = [Alignment(**row) for path in paths for row in json.loads(path.read_text(encoding="utf-8"))]
    refused = [a.refused for a in alignments if a.refused]
    if len(refused) > chase.max_bad * len(alignments):
        raise AlignError(
            f"the model cannot process {len(refused)} of {len(alignments)} records, the first: {refused[0]}",
            where=f"model {key}, dataset {chase.dataset}",
            hint=f"repair or remove these records, or raise chase.max_bad, {chase.max_bad:g}",
        )
    aligned = sum(len(a.token_index) for a in alignments)
    tokens = sum(len(a.answer_ids) for a in alignments)
    words, matched = sum(a.words for a in alignments), sum(a.words_found for a in alignments)
    if aligned == 0:
        raise AlignError(
            "no answer token belongs to any word of its page",
            where=f"model {key}, dataset {chase.dataset}",
            hint="can the model read these pages with this prompt? See chase.prompt and chase.answer",
        )
    lists, text = pa.list_(pa.int64()), pa.string()
    columns = {"sample_id": text, "answer_ids": lists, "token_index": lists, "entry_index": lists, "refused": text}
    table = pa.table({name: [getattr(a, name) for a in alignments] for name in columns}, schema=pa.schema(columns))
    with atomic_path(result_path(root, "align", key, ".parquet", dataset)) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    metrics = {
        "samples": len(alignments),
        "refused": len(refused),
        "tokens": tokens,
        "tokens_aligned": aligned,
        "share_aligned": round(aligned / max(tokens, 1), 6),
        "words": words,
        "words_found": matched,
        "share_found": round(matched / max(words, 1), 6),
    }
    write_json(result_path(root, "align", key, ".json", dataset), metrics)
    shutil.rmtree(work.parent, ignore_errors=True)
    for reason in refused:
        print(f"{key}: left out {reason}")
