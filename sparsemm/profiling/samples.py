"""What `sparsemm bench chase` runs over: pages that a checkpoint reads, or random tokens, in batches and one by one."""

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
from sparsemm.datasets.download import records
from sparsemm.datasets.records import Record
from sparsemm.errors import SparseMMError
from sparsemm.layouts import family_of, get_layout
from sparsemm.models import load_model, read_config
from sparsemm.params import ModelParams
from sparsemm.params.datasets import SyntheticParams
from sparsemm.profiling.shapes import SHAPES, check_room, random_model
from sparsemm.prompts import append_answers, build_inputs, by_length, move_inputs, visual_lengths

PAGES, BATCH = 64, 32  # of a checkpoint; the batch size of params.yaml
BOX = 4  # visual tokens under a random answer token
PROMPT_TEXT, MOST_SAID = "Read the page.", 128  # chase.prompt and chase.max_new_tokens of params.yaml

Inputs = dict[str, torch.Tensor]


def _slot_bytes(model: Any) -> int:
    """Returns the bytes of key and value of one token in one KV head."""
    text = model.config.get_text_config()
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(2 * head_dim * model.dtype.itemsize)


@dataclass(frozen=True)
class Sizes:
    """Of random samples: how many, tokens of the longest prompt, tokens of every answer.

    Raises:
        SparseMMError: if there is none of one of them, or too few tokens for a prompt.
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
        """Bytes of the plain forward's mask: padded prompts want one of bools, which sdpa turns into numbers."""
        return (1 + itemsize) * self.prompts * (self.prompt + self.answer) ** 2 if self.prompts > 1 else 0


@dataclass(frozen=True)
class Alone:
    """A sample by itself: its prompt without padding, its answer, and the box positions of answer[index[t]]."""

    prompt: Inputs
    answer: list[int]
    index: list[int]
    targets: list[NDArray[np.int64]]


@dataclass(frozen=True)
class Samples:
    """A model and what it is chased over, in batches of like length as the stage has them, and one by one."""

    model: Any
    batches: list[Batch]
    alone: list[Alone]

    def longest(self) -> Samples:
        """The longest prompt alone: what the loop, which goes page by page, needs most memory for."""
        most = max(self.alone, key=lambda one: one.prompt["input_ids"].shape[1] + len(one.answer))
        return replace(self, alone=[most])

    def counts(self) -> dict[str, int]:
        """Samples, their tokens, bytes of the weights, and of keys and values of all layers of the largest batch."""
        text = self.model.config.get_text_config()
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        positions = max(batch.inputs["input_ids"].numel() for batch in self.batches)
        return {
            "samples": len(self.alone),
            "positions": sum(int(batch.inputs["attention_mask"].sum()) for batch in self.batches),
            "answer_tokens": sum(len(one.answer) for one in self.alone),
            "weight_bytes": sum(p.numel() * p.element_size() for p in self.model.parameters()),
            "kv_bytes": text.num_hidden_layers * heads * positions * _slot_bytes(self.model),
        }


def of_checkpoint(folder: Path, dtype: str, device: torch.device) -> Samples:
    """Synthetic pages, a checkpoint that reads them, and what it reads.

    Raises:
        SparseMMError: if it reads no word of them.
    """
    layout = get_layout(family_of(read_config(str(folder))))
    entry = {"checkpoint": str(folder), "family": layout.family, "dtype": dtype}
    model, processor = load_model(ModelParams.model_validate(entry), str(device))
    read = _read(model, processor, layout.family)

    def batch(chosen: list[int]) -> Batch:
        pages, said = zip(*(read[i] for i in chosen), strict=True)
        prepared = prepare_batch(model, processor, layout, pages, said, PROMPT_TEXT)
        return prepared._replace(inputs=move_inputs(prepared.inputs, model))

    visual = visual_lengths(processor, [page.image.size for page, _ in read])
    lengths = [n + len(one.answer_ids) for n, (_, one) in zip(visual, read, strict=True)]
    alone = []
    for i, (page, one) in enumerate(read):
        prompt = build_inputs(processor, [[page.image]], [PROMPT_TEXT])
        alone.append(Alone(move_inputs(prompt, model), one.answer_ids, one.token_index, batch([i]).targets[0]))
    return Samples(model, [batch(chosen) for chosen in by_length(lengths, BATCH, MOST_PADDING)], alone)


def _read(model: Any, processor: Any, family: str) -> list[tuple[Record, Alignment]]:
    """Pages and the model's own answers, as the align stage has them; those without a word of the page are left out."""
    pages = list(records(SyntheticParams(source="synthetic", split="calibration", samples=PAGES, seed=0)))
    found = []
    for chosen in by_length(visual_lengths(processor, [page.image.size for page in pages]), BATCH):
        these = [pages[i] for i in chosen]
        for page, ids in zip(these, greedy_answers(model, processor, these, PROMPT_TEXT, MOST_SAID), strict=True):
            one = align_answer(page.id, ids, processor.tokenizer, page.entries, "ordered", family)
            found += [(page, one)] if one.token_index else []
    if not found:
        raise SparseMMError("it reads no word of the synthetic pages", where=str(model.config.name_or_path))
    return found


def of_shape(shape: str, dtype: str, device: torch.device, sizes: Sizes) -> Samples:
    """Random tokens and a language model with random weights; there is no image, and nothing of it is timed.

    Raises:
        ModelError: if the device has too little memory for a plain forward pass.
    """
    longest, numbers = sizes.prompt + sizes.answer, getattr(torch, dtype)
    check_room(shape, longest, sizes.prompts, numbers, device, sizes.mask_bytes(numbers.itemsize))
    model = random_model(SHAPES[shape], numbers, device, longest)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(
        1, SHAPES[shape].vocab_size, (sizes.prompts, sizes.prompt), generator=generator, dtype=torch.int64, device="cpu"
    )
    mask = torch.ones_like(ids)
    for b in range(sizes.prompts):
        mask[b, : b * sizes.prompt // (8 * sizes.prompts)] = 0  # prompts of different length
    drawn = torch.randint(
        1, SHAPES[shape].vocab_size, (sizes.prompts, sizes.answer), generator=generator, dtype=torch.int64, device="cpu"
    )
    answers = drawn.tolist()
    forced = append_answers({"input_ids": ids, "attention_mask": mask}, answers, 0)
    rows = [[first + t for t in range(sizes.answer)] for first in forced.first_rows]
    begins = [(sizes.prompt // 2 + t) % (sizes.prompt - BOX) for t in range(sizes.answer)]
    boxes = [np.arange(begin, begin + BOX) for begin in begins]
    alone = []
    for one, real, answer in zip(ids, mask.bool(), answers, strict=True):
        prompt = {"input_ids": one[real][None], "attention_mask": torch.ones_like(one[real][None])}
        alone.append(Alone(move_inputs(prompt, model), answer, list(range(sizes.answer)), boxes))
    return Samples(model, [Batch(move_inputs(forced.inputs, model), rows, [boxes] * sizes.prompts)], alone)
