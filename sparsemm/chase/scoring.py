"""Scores the heads over some records: from records and answers to hits, batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from sparsemm.chase.aligned_answers import AlignedAnswer
from sparsemm.chase.shards import Shard, find_hits, join_shards, shard_of_sample
from sparsemm.chase.strongest_keys import strongest_keys
from sparsemm.datasets.records import Record
from sparsemm.errors import ScoreTableError
from sparsemm.layouts import Layout, box_positions
from sparsemm.models import content_revision, fingerprint, mixed_layers
from sparsemm.params import ModelParams
from sparsemm.params.stages import ChaseParams
from sparsemm.prompts import append_answers, build_inputs, by_length, visual_lengths
from sparsemm.scores import ScoreTable

if TYPE_CHECKING:
    from sparsemm.align.words import Alignment

MOST_PADDING = 0.05  # share of a batch's positions, as a forward pass computes padding like tokens


class Batch(NamedTuple):
    """Samples that go through the model together."""

    inputs: dict[str, torch.Tensor]  # prompts with answers, padded on the left
    # rows[b], the rows that predict those answer tokens of sample b that belong to a word of the page
    rows: list[list[int]]
    # targets[b][t], visual positions of the word of rows[b][t] in the padded row
    targets: list[list[NDArray[np.int64]]]


def prepare_batch(
    model: Any,
    processor: Any,
    layout: Layout,
    records: Sequence[Record],
    answers: Sequence[AlignedAnswer | Alignment],
    prompt: str,
) -> Batch:
    """Builds the inputs of some samples with their answers, and finds the visual tokens of each answer token's word."""
    inputs = build_inputs(processor, [[record.image] for record in records], [prompt] * len(records))
    batch = append_answers(inputs, [answer.answer_ids for answer in answers], processor.tokenizer.pad_token_id)
    targets: list[list[NDArray[np.int64]]] = []
    for b, (record, answer) in enumerate(zip(records, answers, strict=True)):
        (image,) = layout.image_tokens(model.config, batch.inputs, b, [record.image.size])
        boxes = {j: box_positions(image, record.entries[j].box) for j in set(answer.entry_index)}
        targets.append([boxes[j] for j in answer.entry_index])
    rows = [[first + t for t in answer.token_index] for first, answer in zip(batch.first_rows, answers, strict=True)]
    return Batch(batch.inputs, rows, targets)


def chase_batch(
    model: Any, batch: Batch, answers: Sequence[AlignedAnswer | Alignment], ground_truth: bool
) -> list[Shard]:
    """Scores the samples of a batch in one forward pass; returns one shard per sample.

    Args:
        model: the model.
        batch: from `prepare_batch`.
        answers: the answers in the batch.
        ground_truth: whether only those rows count whose own argmax is the answer token.
    """
    shards = []
    for answer, targets, keys in zip(
        answers, batch.targets, strongest_keys(model, batch.inputs, batch.rows), strict=True
    ):
        expected = np.array([answer.answer_ids[t] for t in answer.token_index], dtype=np.int64)
        is_predicted = keys.predicted.numpy() == expected
        # A page may be so narrow that unpadding leaves no grid, and thus no R_t.
        has_target = np.array([len(positions) > 0 for positions in targets], dtype=bool)
        scored = np.flatnonzero(has_target & is_predicted if ground_truth else has_target)
        scored_targets = [targets[i] for i in scored]
        hits = find_hits(keys.positions.numpy()[:, :, scored], scored_targets)
        entries = [answer.entry_index[i] for i in scored]
        counts = [len(expected), int(is_predicted.sum()), len(scored)]
        shards.append(shard_of_sample(hits, scored_targets, entries, counts))
    return shards


def score_records(
    model: Any,
    processor: Any,
    layout: Layout,
    records: Sequence[Record],
    answers: Sequence[AlignedAnswer | Alignment],
    settings: ChaseParams,
) -> Shard:
    """Scores some records and returns their shard; samples of similar length share a batch."""
    # Records without an aligned token, some of which the processor would refuse, have nothing to score.
    aligned = [i for i, answer in enumerate(answers) if answer.token_index]
    visual = visual_lengths(processor, [records[i].image.size for i in aligned])
    lengths = [n + len(answers[i].answer_ids) for n, i in zip(visual, aligned, strict=True)]
    text = model.config.get_text_config()
    no_hits = np.zeros((int(text.num_hidden_layers), int(text.num_attention_heads), 0), dtype=bool)
    shards = [shard_of_sample(no_hits, [], [], [0, 0, 0])] * len(records)
    for indices in by_length(lengths, settings.batch_size, MOST_PADDING):
        members = [aligned[i] for i in indices]
        chosen = [answers[i] for i in members]
        batch = prepare_batch(model, processor, layout, [records[i] for i in members], chosen, settings.prompt)
        for i, shard in zip(members, chase_batch(model, batch, chosen, settings.answer == "ground_truth"), strict=True):
            shards[i] = shard
    return join_shards(shards)


def score_table(shard: Shard, header: dict[str, Any], where: str | None = None) -> ScoreTable:
    """Returns the table of a shard; the numbers of samples and tokens are added to its header.

    Raises ScoreTableError if no answer token could be scored, or no head ever hit.
    """
    if not len(shard.tokens):
        hint = "does the model read these pages with this prompt?"
        raise ScoreTableError("no answer token could be scored", where=where, hint=hint)
    counts = {"samples": len(shard.counts), "tokens": len(shard.tokens)}
    table = ScoreTable.from_samples(shard.weighted, shard.hits.sum(axis=0), {**header, **counts})
    table.normalised()  # refuses a table without a single hit
    return table


def model_header(model: Any) -> dict[str, Any]:
    """Returns the entries of a score table's header for the model's shape: fingerprint, layers, heads."""
    text = model.config.get_text_config()
    return {
        "fingerprint": fingerprint(model.config),
        "num_layers": int(text.num_hidden_layers),
        "num_heads": int(text.num_attention_heads),
        "num_kv_heads": int(getattr(text, "num_key_value_heads", None) or text.num_attention_heads),
        **mixed_layers(model.config),
    }


def checkpoint_header(model: Any, entry: ModelParams) -> dict[str, Any]:
    """Returns the header entries for a model of params.yaml: checkpoint, how it was loaded, and shape."""
    local = Path(entry.checkpoint).is_dir()
    return {
        "model": entry.checkpoint,
        "revision": content_revision(entry.checkpoint)
        if local
        else entry.revision or getattr(model.config, "_commit_hash", None),
        "family": entry.family,
        "dtype": entry.dtype,
        "quantization": entry.load_in,
        **model_header(model),
    }
