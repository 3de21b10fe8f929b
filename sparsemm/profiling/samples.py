"""What `sparsemm bench chase` runs over: pages that a checkpoint reads, or random tokens, in batches and one by one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sparsemm.chase.hits import append_answers
from sparsemm.datasets.download import records
from sparsemm.layouts import box_positions, family_of, get_layout
from sparsemm.models import load_model, read_config
from sparsemm.params import ModelParams
from sparsemm.params.datasets import SyntheticParams
from sparsemm.profiling.shapes import SHAPES, random_model
from sparsemm.prompts import build_inputs, by_length, visual_lengths

PAGES, BATCH = 64, 32  # of a checkpoint; the batch size of params.yaml
RANDOM, PROMPT, ANSWER = 4, 2048, 64  # of random weights: prompts, their tokens, tokens of an answer
PROMPT_TEXT = "Read the page."

Inputs = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Batch:
    """Samples that go through the model together.

    Attributes:
        inputs: prompts with answers, padded on the left, on the model's device.
        rows: rows[b], the rows that predict the answer of sample b.
        targets: targets[b][t], visual positions of answer token t in the padded row.
    """

    inputs: Inputs
    rows: list[list[int]]
    targets: list[list[NDArray[np.int64]]]


@dataclass(frozen=True)
class Alone:
    """A sample by itself: its prompt without padding, its answer, and the positions of each token's box."""

    prompt: Inputs
    answer: list[int]
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
        """Samples, positions of the prompts with their answers, answer tokens, bytes of the weights."""
        return {
            "samples": len(self.alone),
            "positions": sum(int(batch.inputs["attention_mask"].sum()) for batch in self.batches),
            "answer_tokens": sum(len(one.answer) for one in self.alone),
            "weight_bytes": sum(p.numel() * p.element_size() for p in self.model.parameters()),
        }


def of_checkpoint(folder: Path, dtype: str, device: torch.device) -> Samples:
    """Synthetic pages, their text as the answers, and a checkpoint that reads them."""
    layout = get_layout(family_of(read_config(str(folder))))
    entry = {"checkpoint": str(folder), "family": layout.family, "dtype": dtype}
    model, processor = load_model(ModelParams.model_validate(entry), str(device))
    pages = list(records(SyntheticParams(source="synthetic", split="calibration", samples=PAGES, seed=0)))
    pieces = [[processor.tokenizer(e.text, add_special_tokens=False).input_ids for e in page.entries] for page in pages]
    answers = [[token for piece in one for token in piece] for one in pieces]

    def batch(chosen: list[int]) -> Batch:
        texts = [PROMPT_TEXT] * len(chosen)
        given = build_inputs(processor, [[pages[i].image] for i in chosen], texts)
        forced = append_answers(given, [answers[i] for i in chosen], processor.tokenizer.pad_token_id)
        targets = []
        for b, i in enumerate(chosen):
            (tokens,) = layout.image_tokens(model.config, forced.inputs, b, [pages[i].image.size])
            boxes = [box_positions(tokens, entry.box) for entry in pages[i].entries]
            targets.append([box for box, piece in zip(boxes, pieces[i], strict=True) for _ in piece])
        rows = [[first + t for t in range(len(answers[i]))] for first, i in zip(forced.first_rows, chosen, strict=True)]
        return Batch(_moved(forced.inputs, model), rows, targets)

    visual = visual_lengths(processor, [page.image.size for page in pages])
    batches = by_length([n + len(a) for n, a in zip(visual, answers, strict=True)], BATCH)
    alone = []
    for i, page in enumerate(pages):
        prompt = build_inputs(processor, [[page.image]], [PROMPT_TEXT])
        alone.append(Alone(_moved(prompt, model), answers[i], batch([i]).targets[0]))
    return Samples(model, [batch(chosen) for chosen in batches], alone)


def of_shape(shape: str, dtype: str, device: torch.device) -> Samples:
    """Random tokens and a language model with random weights; there is no image, and nothing of it is timed."""
    model = random_model(SHAPES[shape], getattr(torch, dtype), device, PROMPT + ANSWER)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, SHAPES[shape].vocab_size, (RANDOM, PROMPT), generator=generator)
    mask = torch.ones_like(ids)
    for b in range(RANDOM):
        mask[b, : b * PROMPT // (8 * RANDOM)] = 0  # prompts of different length
    answers = torch.randint(1, SHAPES[shape].vocab_size, (RANDOM, ANSWER), generator=generator).tolist()
    forced = append_answers({"input_ids": ids, "attention_mask": mask}, answers, 0)
    rows = [[first + t for t in range(ANSWER)] for first in forced.first_rows]
    boxes = [np.arange(PROMPT // 2 + t, PROMPT // 2 + t + 4) for t in range(ANSWER)]
    alone = []
    for one, real, answer in zip(ids, mask.bool(), answers, strict=True):
        prompt = {"input_ids": one[real][None], "attention_mask": torch.ones_like(one[real][None])}
        alone.append(Alone(_moved(prompt, model), answer, boxes))
    return Samples(model, [Batch(_moved(forced.inputs, model), rows, [boxes] * RANDOM)], alone)


def _moved(inputs: Any, model: Any) -> Inputs:
    return {k: v.to(model.device, model.dtype if v.is_floating_point() else v.dtype) for k, v in inputs.items()}
