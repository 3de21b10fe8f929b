"""The shards of one model's chase over one data set: computed once by whoever comes first, and kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from sparsemm.chase.answers import Answer, read_answers
from sparsemm.chase.hits import MOST_PADDING, append_answers, inside, look
from sparsemm.chase.settle import settled_after
from sparsemm.chase.shards import Shard, joined, load_shard, nothing_aligned, one_sample, save_shard
from sparsemm.datasets.records import Record, read_records
from sparsemm.dependencies import identity
from sparsemm.files import result_path, sha256_file, work_folder
from sparsemm.layouts import Layout, box_positions, get_layout
from sparsemm.models import content_revision, fingerprint, load_model, mixed_layers
from sparsemm.params import ModelParams, Params
from sparsemm.params.stages import ChaseParams
from sparsemm.prompts import build_inputs, by_length, visual_lengths

if TYPE_CHECKING:
    from sparsemm.align.words import Alignment


class Batch(NamedTuple):
    """Samples that go through the model together.

    Attributes:
        inputs: prompts with answers, padded on the left.
        rows: rows[b], the rows that predict answer tokens of sample b that belong to a word of the page.
        targets: targets[b][t], visual positions of the word of rows[b][t] in the padded row.
    """

    inputs: dict[str, torch.Tensor]
    rows: list[list[int]]
    targets: list[list[NDArray[np.int64]]]


def prepare_batch(
    model: Any,
    processor: Any,
    layout: Layout,
    records: Sequence[Record],
    answers: Sequence[Answer | Alignment],
    prompt: str,
) -> Batch:
    """One batch of samples with their answers, and what each answer token should look at."""
    inputs = build_inputs(processor, [[record.image] for record in records], [prompt] * len(records))
    batch = append_answers(inputs, [one.answer_ids for one in answers], processor.tokenizer.pad_token_id)
    targets: list[list[NDArray[np.int64]]] = []
    for b, (record, one) in enumerate(zip(records, answers, strict=True)):
        (tokens,) = layout.image_tokens(model.config, batch.inputs, b, [record.image.size])
        boxes = {j: box_positions(tokens, record.entries[j].box) for j in set(one.entry_index)}
        targets.append([boxes[j] for j in one.entry_index])
    rows = [[first + t for t in one.token_index] for first, one in zip(batch.first_rows, answers, strict=True)]
    return Batch(batch.inputs, rows, targets)


def chase_batch(
    model: Any,
    processor: Any,
    layout: Layout,
    records: Sequence[Record],
    answers: Sequence[Answer | Alignment],
    prompt: str,
    forced: bool,
) -> list[Shard]:
    """Hits of one batch of samples, from one forward pass; one shard a sample.

    Args:
        forced: the answers are the ground truth: only rows whose own argmax is the target count.
    """
    batch = prepare_batch(model, processor, layout, records, answers, prompt)
    result = []
    for one, target, seen in zip(answers, batch.targets, look(model, batch.inputs, batch.rows), strict=True):
        wanted = np.array([one.answer_ids[t] for t in one.token_index], dtype=np.int64)
        said = seen.predicted.numpy() == wanted
        # A page so narrow that unpadding leaves no grid has no R_t to hit.
        usable = np.array([len(positions) > 0 for positions in target], dtype=bool)
        keep = np.flatnonzero(usable & said if forced else usable)
        kept = [target[i] for i in keep]
        found = inside(seen.indices.numpy()[:, :, keep], kept)
        entries = [one.entry_index[i] for i in keep]
        result.append(one_sample(found, kept, entries, [len(wanted), int(said.sum()), len(keep)]))
    return result


def score_records(
    model: Any,
    processor: Any,
    layout: Layout,
    records: Sequence[Record],
    answers: Sequence[Answer | Alignment],
    settings: ChaseParams,
) -> Shard:
    """Hits of some records in their order; samples of like length go through the model together."""
    # Records without an aligned token (some the processor would refuse) have nothing to look for.
    aligned = [i for i, answer in enumerate(answers) if answer.token_index]
    visual = visual_lengths(processor, [records[i].image.size for i in aligned])
    lengths = [n + len(answers[i].answer_ids) for n, i in zip(visual, aligned, strict=True)]
    text = model.config.get_text_config()
    parts = [nothing_aligned((int(text.num_hidden_layers), int(text.num_attention_heads)))] * len(records)
    for batch in by_length(lengths, settings.batch_size, MOST_PADDING):
        members = [aligned[i] for i in batch]
        chosen = [records[i] for i in members], [answers[i] for i in members]
        shards = chase_batch(model, processor, layout, *chosen, settings.prompt, settings.answer == "ground_truth")
        for i, shard in zip(members, shards, strict=True):
            parts[i] = shard
    return joined(parts)


def model_header(model: Any) -> dict[str, Any]:
    """What a score table says of a model's shape: fingerprint, layers, heads."""
    text = model.config.get_text_config()
    return {
        "fingerprint": fingerprint(model.config),
        "num_layers": int(text.num_hidden_layers),
        "num_heads": int(text.num_attention_heads),
        "num_kv_heads": int(getattr(text, "num_key_value_heads", None) or text.num_attention_heads),
        **mixed_layers(model.config),
    }


def checkpoint_header(model: Any, entry: ModelParams) -> dict[str, Any]:
    """What a score table says of a model of params.yaml: which checkpoint it is, how it was loaded, its shape."""
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


class Work:
    """The shards of one model's chase, each computed once and kept until the table is written.

    Attributes:
        count: of shards.
        header: of the score table, but for what only the shards can say.
    """

    def __init__(self, params: Params, key: str, root: Path = Path("."), dataset: str | None = None) -> None:
        """Load records, answers and the model.

        Args:
            dataset: of `robustness`; None for `chase.dataset`.

        Raises:
            AlignError: if the align stage's file is missing or does not fit the data set.
            ParamsError: if the model or the data set is unknown.
        """
        params = params.of(key).over(dataset)
        given, entry = params.chase, params.model(key)
        source = root / "artifacts" / "datasets" / f"{given.dataset}.parquet"
        aligned = result_path(root, "align", key, ".parquet", dataset)
        self.params = given
        self.records = read_records(source)
        self.answers = read_answers(aligned, self.records)
        self.model, self.processor = load_model(entry)
        self.layout = get_layout(entry.family)
        model = checkpoint_header(self.model, entry)
        self.shape = (model["num_layers"], model["num_heads"])
        self.header = {
            "dataset": given.dataset,
            "dataset_sha256": sha256_file(source),
            "align_sha256": sha256_file(aligned),
            "prompt": given.prompt,
            "mode": given.answer,
            "params": given.model_dump(mode="json"),
            **model,
        }
        # When to stop does not change what a shard holds.
        parts = self.header | {"params": given.model_dump(mode="json", exclude={"stop"})}
        self.work = work_folder(root, "chase", key, dataset)
        self.folder = self.work / identity(parts, __name__)
        self.count = -(-len(self.records) // given.shard_size)

    def shard(self, number: int) -> Shard:
        """A shard: the kept one where it is whole, else computed and kept."""
        shard = self._kept(number)
        if shard is None:
            shard = self._computed(number)
            save_shard(self._path(number), shard, self._ids(number))
        return shard

    def settled(self) -> int | None:
        """How many shards are enough, as far as the kept ones in front tell; None if they do not."""

        def front() -> Iterator[Shard]:
            for number in range(self.count):
                shard = self._kept(number)
                if shard is None:
                    return
                yield shard

        return settled_after(front(), self.params.stop)

    def _chosen(self, number: int) -> range:
        size = self.params.shard_size
        return range(number * size, min((number + 1) * size, len(self.records)))

    def _ids(self, number: int) -> list[str]:
        return [self.records[i].id for i in self._chosen(number)]

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:04d}.safetensors"

    def _kept(self, number: int) -> Shard | None:
        return load_shard(self._path(number), self._ids(number), self.shape)

    def _computed(self, number: int) -> Shard:
        chosen = self._chosen(number)
        records, answers = [self.records[i] for i in chosen], [self.answers[i] for i in chosen]
        return score_records(self.model, self.processor, self.layout, records, answers, self.params)
