"""The chase stage: every aligned answer through one forward, shard by shard, into a score table."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save

from sparsemm.chase.hits import collect, score
from sparsemm.datasets.records import Record, read_records
from sparsemm.errors import AlignError
from sparsemm.files import atomic_path, sha256_file, write_json
from sparsemm.layouts import box_positions, get_layout
from sparsemm.models import fingerprint, load_model
from sparsemm.params import ModelParams, Params
from sparsemm.progress import progress
from sparsemm.prompts import build_inputs
from sparsemm.scores import ScoreTable, summary

Row = dict[str, Any]  # of the align stage: sample_id, answer_ids, token_index, entry_index


def chase_batch(
    model: Any, processor: Any, records: list[Record], rows: list[Row], params: Params, family: str
) -> dict[str, np.ndarray]:
    """Hits of one batch: per_sample (N, L, Hq) float64, hits (L, Hq) int64, tokens and refused (1,) int64.

    With ground-truth answers only tokens the model would have said itself are scored; the others are `refused`.
    """
    given = params.chase
    inputs = build_inputs(processor, [[r.image] for r in records], [given.prompt] * len(records)).to(model.device)
    inputs = {k: v.to(model.dtype) if v.is_floating_point() else v for k, v in inputs.items()}
    layout = get_layout(family)
    answers = [row["answer_ids"] for row in rows]
    seen = collect(model, inputs, answers, [row["token_index"] for row in rows], processor.tokenizer.pad_token_id)
    per_sample, hits, tokens, refused = [], 0, 0, 0
    for number, (record, row, looked) in enumerate(zip(records, rows, seen, strict=True)):
        (image,) = layout.image_tokens(model.config, inputs, number, [record.image.size])
        padding = int((inputs["attention_mask"][number] == 0).sum())
        boxes = {i: box_positions(image, record.entries[i].box) - padding for i in set(row["entry_index"])}
        targets = [boxes[i] for i in row["entry_index"]]
        if given.answer == "ground_truth":
            refused += int((~looked.predicted).sum())
            targets = [r if said else r[:0] for r, said in zip(targets, looked.predicted, strict=True)]
        one_hits, weighted = score(looked, targets)
        hits = hits + one_hits
        tokens += sum(len(region) > 0 for region in targets)
        per_sample.append(weighted)
    counts = {"tokens": np.array([tokens]), "refused": np.array([refused])}
    return {"per_sample": np.stack(per_sample), "hits": np.asarray(hits), **counts}


def _merge(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    merged = {key: sum(part[key] for part in parts) for key in ("hits", "tokens", "refused")}
    return {"per_sample": np.concatenate([part["per_sample"] for part in parts]), **merged}


def read_alignments(path: Path, records: list[Record]) -> list[Row]:
    """Rows of the align stage, one per record, in the same order.

    Raises:
        AlignError: if the file is missing or of other records.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    hint = "run the align stage first"
    try:
        rows: list[Row] = pq.read_table(path).to_pylist()
    except (OSError, pa.ArrowInvalid) as error:
        raise AlignError(f"cannot be read: {error}", where=str(path), hint=hint) from error
    if [row.get("sample_id") for row in rows] != [record.id for record in records]:
        raise AlignError("its samples are not the data set's", where=str(path), hint=hint)
    return rows


def run(params: Params, key: str, root: Path = Path(".")) -> None:
    """Write artifacts/scores/<key>.safetensors, .json (metrics) and .csv (sorted shares).

    Stopped and run again, it goes on after the last whole shard.

    Raises:
        AlignError: if the align stage has not run.
        ScoreTableError: if no head scored at all.
    """
    given, entry = params.chase, params.model(key)
    source = root / "artifacts" / "datasets" / f"{given.dataset}.parquet"
    aligned = root / "artifacts" / "align" / f"{key}.parquet"
    records = read_records(source)
    rows = read_alignments(aligned, records)
    work = root / "artifacts" / "work" / "chase" / key / _identity(entry, params, source, aligned)
    starts = range(0, len(records), given.shard_size)
    paths = [work / f"{number:05d}.safetensors" for number in range(len(starts))]
    todo = [(path, start) for path, start in zip(paths, starts, strict=True) if not path.is_file()]
    header_path = work / "header.json"
    if todo or not header_path.is_file():
        model, processor = load_model(entry)
        config = model.config.get_text_config()
        head = {"fingerprint": fingerprint(model.config), "num_kv_heads": config.num_key_value_heads}
        write_json(header_path, head)
        for path, start in progress(todo, len(todo), f"chase {key} (shards of {given.shard_size})"):
            end = min(start + given.shard_size, len(records))
            parts = []
            for at in range(start, end, given.batch_size):
                batch = slice(at, min(at + given.batch_size, end))
                parts.append(chase_batch(model, processor, records[batch], rows[batch], params, entry.family))
            with atomic_path(path) as temporary:
                temporary.write_bytes(save(_merge(parts)))
    merged = _merge([load_file(path) for path in paths])
    header = json.loads(header_path.read_text(encoding="utf-8")) | {
        "model": entry.checkpoint,
        "revision": entry.revision,
        "dtype": entry.dtype,
        "note": entry.note,
        "dataset": given.dataset,
        "source": params.datasets[given.dataset].model_dump(),
        "samples": len(records),
        "tokens": int(merged["tokens"][0]),
        "tokens_refused": int(merged["refused"][0]),
        "prompt": given.prompt,
        "answer": given.answer,
        "align": given.align,
    }
    table = ScoreTable(merged["per_sample"], merged["hits"], header)
    metrics = summary(table)
    folder = root / "artifacts" / "scores"
    table.save(folder / f"{key}.safetensors")
    write_json(folder / f"{key}.json", metrics)
    with atomic_path(folder / f"{key}.csv") as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(["rank", "layer", "head", "share", "cumulative"])
        total = 0.0
        for rank, (layer, head_index, share) in enumerate(table.ranked(), start=1):
            total += share
            writer.writerow([rank, layer, head_index, round(share, 8), round(total, 8)])
    shutil.rmtree(work.parent, ignore_errors=True)


def _identity(entry: ModelParams, params: Params, *files: Path) -> str:
    parts = [entry.model_dump(exclude={"note"}), params.chase.model_dump(), *(sha256_file(file) for file in files)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
