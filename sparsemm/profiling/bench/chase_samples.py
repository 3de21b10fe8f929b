"""The samples of `sparsemm bench chase`: pages that a checkpoint reads, or random tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sparsemm.align.stage import greedy_answers
from sparsemm.align.words import Alignment, align_answer
from sparsemm.chase.scoring import MOST_PADDING, Batch, prepare_batch
from sparsemm.datasets.download import synthetic_records
from sparsemm.datasets.records import Record
from sparsemm.errors import SparseMMError
from sparsemm.layouts import family_of, get_layout
from sparsemm.models import load_model, read_config
from sparsemm.params import ModelParams
from sparsemm.params.datasets import SyntheticParams
from sparsemm.profiling.shapes import SHAPES, check_room, random_model
from sparsemm.prompts import append_answers, build_inputs, by_length, move_inputs, visual_lengths

PAGES, BATCH = 64, 32  # pages that a checkpoint reads; the batch size in params.yaml
BOX = 4  # target positions of a random answer token
PROMPT_TEXT, MAX_NEW_TOKENS = "Read the page.", 128  # chase.prompt and chase.max_new_tokens in params.yaml

Inputs = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Sizes:
    """The sizes of random samples: number of prompts, tokens of the longest prompt, tokens of every answer.

    Raises SparseMMError if one of them is too small.
    """

    prompts: int = 4
    prompt: int = 2048
    answer: int = 64

    def __post_init__(self) -> None:
        for name, least in (("prompts", 1), ("prompt", 2 * BOX), ("answer", 1)):
            if getattr(self, name) < least:
                what = f"--{name} {getattr(self, name)} is too small"
                raise SparseMMError(what, hint=f"at least {least}")

    def mask_bytes(self, itemsize: int) -> int:
        """Returns the bytes of the plain forward pass's mask, which sdpa converts; only padded prompts need one."""
        return (1 + itemsize) * self.prompts * (self.prompt + self.answer) ** 2 if self.prompts > 1 else 0


@dataclass(frozen=True)
class Alone:
    """A single sample: its prompt without padding, its answer, and the target positions of answer[index[t]]."""

    prompt: Inputs
    answer: list[int]
    index: list[int]
    targets: list[NDArray[np.int64]]


@dataclass(frozen=True)
class Samples:
    """A model and its samples, in batches of similar length as in the chase stage, and one by one."""

    model: Any
    batches: list[Batch]
    alone: list[Alone]

    def longest(self) -> Samples:
        """Returns the samples with the longest one alone, for which the loop needs the most memory."""
        longest = max(self.alone, key=lambda sample: sample.prompt["input_ids"].shape[1] + len(sample.answer))
        return replace(self, alone=[longest])

    def counts(self) -> dict[str, int]:
        """Counts samples and tokens, and the bytes of weights and of the largest batch's keys and values."""
        text = self.model.config.get_text_config()
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        slot_bytes = 2 * head_dim * self.model.dtype.itemsize  # key and value of one token in one KV head
        positions = max(batch.inputs["input_ids"].numel() for batch in self.batches)
        return {
            "samples": len(self.alone),
            "positions": sum(int(batch.inputs["attention_mask"].sum()) for batch in self.batches),
            "answer_tokens": sum(len(sample.answer) for sample in self.alone),
            "weight_bytes": sum(p.numel() * p.element_size() for p in self.model.parameters()),
            "kv_bytes": text.num_hidden_layers * heads * positions * slot_bytes,
        }


def of_checkpoint(folder: Path, dtype: str, device: torch.device) -> Samples:
    """Loads a checkpoint, and lets it read synthetic pages. Raises SparseMMError if it reads no word of them."""
    layout = get_layout(family_of(read_config(str(folder))))
    entry = {"checkpoint": str(folder), "family": layout.family, "dtype": dtype}
    model, processor = load_model(ModelParams.model_validate(entry), str(device))
    aligned = _read_pages(model, processor, layout.family)

    def batch(indices: list[int]) -> Batch:
        pages, answers = zip(*(aligned[i] for i in indices), strict=True)
        prepared = prepare_batch(model, processor, layout, pages, answers, PROMPT_TEXT)
        return prepared._replace(inputs=move_inputs(prepared.inputs, model))

    visual = visual_lengths(processor, [page.image.size for page, _ in aligned])
    lengths = [n + len(answer.answer_ids) for n, (_, answer) in zip(visual, aligned, strict=True)]
    alone = []
    for i, (page, answer) in enumerate(aligned):
        prompt = move_inputs(build_inputs(processor, [[page.image]], [PROMPT_TEXT]), model)
        alone.append(Alone(prompt, answer.answer_ids, answer.token_index, batch([i]).targets[0]))
    return Samples(model, [batch(indices) for indices in by_length(lengths, BATCH, MOST_PADDING)], alone)


def _read_pages(model: Any, processor: Any, family: str) -> list[tuple[Record, Alignment]]:
    """Returns pages with the model's aligned answers, without those that have no word of the page."""
    pages = list(synthetic_records(SyntheticParams(source="synthetic", split="calibration", samples=PAGES, seed=0)))
    aligned = []
    for indices in by_length(visual_lengths(processor, [page.image.size for page in pages]), BATCH):
        batch = [pages[i] for i in indices]
        for page, ids in zip(batch, greedy_answers(model, processor, batch, PROMPT_TEXT, MAX_NEW_TOKENS), strict=True):
            answer = align_answer(page.id, ids, processor.tokenizer, page.entries, "ordered", family)
            if answer.token_index:
                aligned.append((page, answer))
    if not aligned:
        raise SparseMMError("it reads no word of the synthetic pages", where=str(model.config.name_or_path))
    return aligned


def of_shape(shape: str, dtype: str, device: torch.device, sizes: Sizes) -> Samples:
    """Creates a language model with random weights, and samples of random tokens without an image.

    Raises ModelError if the device has too little memory for a plain forward pass.
    """
    longest, torch_dtype = sizes.prompt + sizes.answer, getattr(torch, dtype)
    check_room(shape, longest, sizes.prompts, torch_dtype, device, sizes.mask_bytes(torch_dtype.itemsize))
    model = random_model(SHAPES[shape], torch_dtype, device, longest)
    generator = torch.Generator().manual_seed(0)

    def random_ids(count: int) -> torch.Tensor:
        size, vocabulary = (sizes.prompts, count), SHAPES[shape].vocab_size
        return torch.randint(1, vocabulary, size, generator=generator, dtype=torch.int64, device="cpu")

    ids = random_ids(sizes.prompt)
    mask = torch.ones_like(ids)
    for b in range(sizes.prompts):
        mask[b, : b * sizes.prompt // (8 * sizes.prompts)] = 0  # prompts of different length
    answers = random_ids(sizes.answer).tolist()
    batch = append_answers({"input_ids": ids, "attention_mask": mask}, answers, 0)
    rows = [[first + t for t in range(sizes.answer)] for first in batch.first_rows]
    begins = [(sizes.prompt // 2 + t) % (sizes.prompt - BOX) for t in range(sizes.answer)]
    boxes = [np.arange(begin, begin + BOX) for begin in begins]
    alone = []
    for padded, real, answer in zip(ids, mask.bool(), answers, strict=True):
        prompt = {"input_ids": padded[real][None], "attention_mask": torch.ones_like(padded[real][None])}
        alone.append(Alone(move_inputs(prompt, model), answer, list(range(sizes.answer)), boxes))
    return Samples(model, [Batch(move_inputs(batch.inputs, model), rows, [boxes] * sizes.prompts)], alone)
