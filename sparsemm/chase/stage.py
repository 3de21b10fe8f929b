"""The chase stage: aligned answers of one model -> its score table; resumable per shard."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sparsemm.chase.hits import append_answers, look, score_sample
from sparsemm.datasets.records import Record, read_records
from sparsemm.errors import AlignError, ScoreTableError
from sparsemm.files import atomic_path, sha256_file, write_json
from sparsemm.layouts import Layout, box_positions, get_layout
from sparsemm.models import content_revision, fingerprint, load_model, sliding_layers
from sparsemm.params import Params
from sparsemm.progress import progress
from sparsemm.prompts import build_inputs
from sparsemm.scores import SHARES, ScoreTable

WORK_FORMAT = 1  # raise it when what a shard holds changes meaning


@dataclass(frozen=True)
class Answer:
    """A row of the align stage: answer token token_index[i] belongs to record entry entry_index[i]."""

    sample_id: str
    answer_ids: list[int]
    token_index: list[int]
    entry_index: list[int]


@dataclass(frozen=True)
class Shard:
    """What some samples gave.

    Attributes:
        hits: (N, L, Hq) int64.
        weighted: (N, L, Hq) float64.
        counts: (N, 3) int64: answer tokens on the page, those of them the model itself would have said, and scored.
    """

    hits: NDArray[np.int64]
    weighted: NDArray[np.float64]
    counts: NDArray[np.int64]

    def tensors(self) -> dict[str, np.ndarray]:
        """The arrays by name."""
        return {"hits": self.hits, "weighted": self.weighted, "counts": self.counts}


def read_answers(path: str | Path, records: list[Record]) -> list[Answer]:
    """Rows of artifacts/align/<model>.parquet, in the order of the records.

    Raises:
        AlignError: if the file is missing or damaged, or does not belong to these records.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    where = str(path)
    hint = "run the align stage again"
    if not Path(path).is_file():
        raise AlignError("no such file", where=where, hint="run the align stage first")
    try:
        rows = pq.read_table(path, columns=list(Answer.__annotations__)).to_pylist()
    except (pa.ArrowException, OSError, KeyError) as error:
        raise AlignError(f"not what the align stage writes: {error}", where=where, hint=hint) from error
    answers = {row["sample_id"]: Answer(**row) for row in rows}
    if len(rows) != len(records) or set(answers) != {record.id for record in records}:
        raise AlignError("its samples are not those of the data set", where=where, hint=hint)
    for record in records:
        one = answers[record.id]
        fits = (
            len(one.token_index) == len(one.entry_index)
            and all(0 <= i < len(one.answer_ids) for i in one.token_index)
            and all(0 <= j < len(record.entries) for j in one.entry_index)
        )
        if not fits:
            raise AlignError(f"indices of sample {record.id!r} are out of range", where=where, hint=hint)
    return [answers[record.id] for record in records]


def chase_batch(
    model: Any, processor: Any, layout: Layout, records: list[Record], answers: list[Answer], prompt: str, forced: bool
) -> Shard:
    """Hits of one batch of samples, from one forward pass over those that have an aligned token.

    Args:
        forced: the answers are the ground truth: only rows whose own argmax is the target count.
    """
    chosen = [number for number, one in enumerate(answers) if one.token_index]
    text = model.config.get_text_config()
    shape = (len(records), int(text.num_hidden_layers), int(text.num_attention_heads))
    result = Shard(np.zeros(shape, np.int64), np.zeros(shape), np.zeros((len(records), 3), np.int64))
    if not chosen:
        return result
    records, answers = [records[i] for i in chosen], [answers[i] for i in chosen]
    inputs = build_inputs(processor, [[record.image] for record in records], [prompt] * len(records))
    batch = append_answers(inputs, [one.answer_ids for one in answers], processor.tokenizer.pad_token_id)
    targets: list[list[NDArray[np.int64]]] = []
    for b, (record, one) in enumerate(zip(records, answers, strict=True)):
        (tokens,) = layout.image_tokens(model.config, batch.inputs, b, [record.image.size])
        boxes = {j: box_positions(tokens, record.entries[j].box) for j in set(one.entry_index)}
        targets.append([boxes[j] for j in one.entry_index])
    rows = [[first + t for t in one.token_index] for first, one in zip(batch.first_rows, answers, strict=True)]
    looked = look(model, batch.inputs, rows)
    for row, one, target, seen in zip(chosen, answers, targets, looked, strict=True):
        wanted = np.array([one.answer_ids[t] for t in one.token_index], dtype=np.int64)
        said = seen.predicted.numpy() == wanted
        # A page so narrow that unpadding leaves no grid has no R_t to hit.
        usable = np.array([len(positions) > 0 for positions in target], dtype=bool)
        keep = np.flatnonzero(usable & said if forced else usable)
        found = score_sample(seen.indices.numpy()[:, :, keep], [target[i] for i in keep])
        result.hits[row], result.weighted[row] = found
        result.counts[row] = len(wanted), int(said.sum()), len(keep)
    return result


def save_shard(path: Path, shard: Shard, ids: list[str]) -> None:
    """Write a shard atomically."""
    with atomic_path(path) as temporary:
        save_file(shard.tensors(), temporary, metadata={"sparsemm": json.dumps(ids)})


def load_shard(path: Path, ids: list[str], shape: tuple[int, int]) -> Shard | None:
    """A finished shard, or None if it is missing, damaged, of other samples, or of another (L, Hq)."""
    try:
        with safe_open(str(path), framework="np") as file:
            known = json.loads((file.metadata() or {})["sparsemm"])
            shard = Shard(*(file.get_tensor(name) for name in ("hits", "weighted", "counts")))
    except (SafetensorError, OSError, KeyError, ValueError):
        return None
    n = len(ids)
    wanted = {"hits": (n, *shape), "weighted": (n, *shape), "counts": (n, 3)}
    fits = known == ids and {name: values.shape for name, values in shard.tensors().items()} == wanted
    return shard if fits else None


def metrics(table: ScoreTable, counts: NDArray[np.int64]) -> dict[str, Any]:
    """What the stage reports, plain JSON: counts, hit rates, concentration and reliability.

    Args:
        counts: (N, 3) int64, see `Shard`.
    """
    aligned, said, scored = (int(v) for v in counts.sum(axis=0))
    rates = table.hits / scored
    layer, head, _ = table.top_heads(1)[0]
    half = table.split_half()
    return {
        "samples": len(counts),
        "tokens_aligned": aligned,
        "tokens_scored": scored,
        "share_own_argmax": round(said / aligned, 6),
        "hit_rate_mean": round(float(rates.mean()), 6),
        "hit_rate_max": round(float(rates.max()), 6),
        "top_head": f"{layer}-{head}",
        "top_head_hit_rate": round(float(rates[layer, head]), 6),
        "top_share": {f"{fraction:.0%}": round(table.top_share(fraction), 6) for fraction in SHARES},
        "split_half": None if math.isnan(half) else round(half, 6),
    }


def write_curve(path: Path, table: ScoreTable) -> None:
    """CSV for plots: heads by falling score, with rank (from 1), share and cumulative share."""
    heads = table.top_heads(table.scores.size)
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(["rank", "share", "cumulative", "layer", "head"])
        total = 0.0
        for rank, (layer, head, share) in enumerate(heads, start=1):
            total += share
            writer.writerow([rank, f"{share:.8f}", f"{min(total, 1.0):.8f}", layer, head])


def _identity(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


class Work:
    """The shards of one model's chase, each computed once and kept until the table is written.

    Attributes:
        count: of shards.
    """

    def __init__(self, params: Params, key: str, root: Path = Path(".")) -> None:
        """Load records, answers and the model.

        Raises:
            AlignError: if the align stage's file is missing or does not fit the data set.
        """
        given, entry = params.chase, params.model(key)
        source = root / "artifacts" / "datasets" / f"{given.dataset}.parquet"
        aligned = root / "artifacts" / "align" / f"{key}.parquet"
        self.params, self.key, self.root = given, key, root
        self.records = read_records(source)
        self.answers = read_answers(aligned, self.records)
        self.model, self.processor = load_model(entry)
        self.layout = get_layout(entry.family)
        text = self.model.config.get_text_config()
        self.shape = (int(text.num_hidden_layers), int(text.num_attention_heads))
        local = Path(entry.checkpoint).is_dir()
        self.header = {
            "model": entry.checkpoint,
            "revision": content_revision(entry.checkpoint)
            if local
            else entry.revision or getattr(self.model.config, "_commit_hash", None),
            "fingerprint": fingerprint(self.model.config),
            "family": entry.family,
            "dtype": entry.dtype,
            "num_layers": self.shape[0],
            "num_heads": self.shape[1],
            "num_kv_heads": int(getattr(text, "num_key_value_heads", None) or self.shape[1]),
            "dataset": given.dataset,
            "dataset_sha256": sha256_file(source),
            "align_sha256": sha256_file(aligned),
            "prompt": given.prompt,
            "mode": given.answer,
            "params": given.model_dump(mode="json"),
            **sliding_layers(self.model.config),
        }
        self.work = root / "artifacts" / "work" / "chase" / key
        self.folder = self.work / _identity({"work_format": WORK_FORMAT, **self.header})
        self.count = -(-len(self.records) // given.shard_size)

    def shard(self, number: int) -> Shard:
        """A shard: the kept one where it is whole, else computed and kept."""
        given, start = self.params, number * self.params.shard_size
        ids = [record.id for record in self.records[start : start + given.shard_size]]
        path = self.folder / f"{number:04d}.safetensors"
        shard = load_shard(path, ids, self.shape)
        if shard is None:
            parts = []
            for first in range(start, start + len(ids), given.batch_size):
                part = slice(first, min(first + given.batch_size, start + len(ids)))
                records, answers = self.records[part], self.answers[part]
                forced = given.answer == "ground_truth"
                parts.append(
                    chase_batch(self.model, self.processor, self.layout, records, answers, given.prompt, forced)
                )
            shard = Shard(
                *(np.concatenate(arrays) for arrays in zip(*(p.tensors().values() for p in parts), strict=True))
            )
            save_shard(path, shard, ids)
        return shard


def run(params: Params, key: str, root: Path = Path(".")) -> None:
    """Score the heads of one model; write artifacts/scores/<key>.safetensors, .json (metrics) and .csv (curve).

    Shards of `chase.shard_size` samples are kept until the end: a stopped run goes on where it was.

    Raises:
        AlignError: if the align stage's file is missing or does not fit the data set.
        ScoreTableError: if no token could be scored, or no head ever hit.
    """
    work = Work(params, key, root)
    text = f"chase {key} (shards of {params.chase.shard_size})"
    shards = [work.shard(number) for number in progress(range(work.count), work.count, text)]
    _write(root / "artifacts" / "scores", key, shards, work.header)
    shutil.rmtree(work.work, ignore_errors=True)


def _write(folder: Path, key: str, shards: list[Shard], header: dict[str, Any]) -> None:
    counts = np.concatenate([shard.counts for shard in shards]) if shards else np.zeros((0, 3), np.int64)
    scored = int(counts[:, 2].sum())
    if scored == 0:
        raise ScoreTableError(
            "no answer token could be scored",
            where=f"model {key}",
            hint="see artifacts/align: does the model read these pages with this prompt?",
        )
    table = ScoreTable.from_samples(
        np.concatenate([shard.weighted for shard in shards]),
        np.sum([shard.hits.sum(axis=0) for shard in shards], axis=0),
        {**header, "samples": len(counts), "tokens": scored},
    )
    table.normalised()  # refuses a table without a single hit before anything is written
    table.save(folder / f"{key}.safetensors")
    write_json(folder / f"{key}.json", metrics(table, counts))
    write_curve(folder / f"{key}.csv", table)
