"""`sparsemm bench chase`: the chase against a plain forward pass, and against decoding with attention weights."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LogitsProcessor

from sparsemm.cache import library
from sparsemm.chase.hits import append_answers, look, score_sample
from sparsemm.datasets.download import records
from sparsemm.errors import SparseMMError
from sparsemm.layouts import box_positions, family_of, get_layout
from sparsemm.models import load_model, read_config
from sparsemm.params import ModelParams
from sparsemm.params.datasets import SyntheticParams
from sparsemm.profiling import clock
from sparsemm.profiling.peak import peak_bytes
from sparsemm.profiling.shapes import SHAPES, random_model
from sparsemm.prompts import build_inputs, by_length, visual_lengths

CHECKPOINT = Path("data/checkpoints/tiny-qwen2-vl")
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


def forward(given: Samples) -> None:
    """A plain forward pass over the same tokens with sdpa, without a cache; logits of the last row alone."""
    for batch in given.batches:
        inputs = dict(batch.inputs)
        if not hasattr(getattr(given.model, given.model.base_model_prefix), "get_rope_index"):
            inputs["position_ids"] = (inputs["attention_mask"].cumsum(dim=-1) - 1).clamp(min=0)
        given.model(**inputs, use_cache=False, logits_to_keep=1)


def chase(given: Samples) -> NDArray[np.float64]:
    """Teacher-forced: one forward pass, argmax and greedy token at every answer row; (L, Hq) scores."""
    scores: Any = 0
    for batch in given.batches:
        looked = look(given.model, batch.inputs, batch.rows)
        for one, targets in zip(looked, batch.targets, strict=True):
            scores = scores + score_sample(one.indices, targets)[1]
    return scores


class _Force(LogitsProcessor):
    """Let generate say the given answer."""

    def __init__(self, length: int, answer: Sequence[int]) -> None:
        self.length, self.answer = length, answer

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self.answer[input_ids.shape[1] - self.length]] = 0.0
        return forced


def loop(given: Samples) -> NDArray[np.float64]:
    """The public method: page by page, `generate` with eager attention that returns every weight; (L, Hq) scores."""
    text = given.model.config.get_text_config()
    part = "" if text is given.model.config else "text_config"
    before = text._attn_implementation
    scores = np.zeros((text.num_hidden_layers, text.num_attention_heads))
    given.model.set_attn_implementation({part: "eager"})
    try:
        for one in given.alone:
            out = given.model.generate(
                **one.prompt,
                do_sample=False,
                max_new_tokens=len(one.answer),
                eos_token_id=None,
                pad_token_id=0,
                logits_processor=[_Force(one.prompt["input_ids"].shape[1], one.answer)],
                output_attentions=True,
                return_dict_in_generate=True,
            )
            for target, step in zip(one.targets, out.attentions, strict=True):
                wanted = set(target.tolist())
                for at, layer in enumerate(step):
                    for head in range(layer.shape[1]):
                        if int(layer[0, head, -1].argmax()) in wanted:
                            scores[at, head] += 1 / len(wanted)
    finally:
        given.model.set_attn_implementation({part: before})
    return scores


VARIANTS: dict[str, Callable[[Samples], Any]] = {"forward": forward, "chase": chase, "loop": loop}


@torch.inference_mode()
def measure(given: Samples, repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of every variant over all samples, called in turns after a warm-up.

    The loop, which is slow, takes every third turn.
    """
    times: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for name, variant in VARIANTS.items():
        variant(_longest(given) if name == "loop" else given)
    for turn in range(repeats):
        for name, variant in VARIANTS.items():
            if name == "loop" and turn % 3:
                continue
            began = clock.now(device)
            variant(given)
            times[name].append(clock.now(device) - began)
    return times


def _longest(given: Samples) -> Samples:
    """The longest prompt alone: what the loop, which goes page by page, needs most memory for."""
    return replace(given, alone=[max(given.alone, key=lambda one: one.prompt["input_ids"].shape[1] + len(one.answer))])


def run(
    shape: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    repeats: int = 9,
    checkpoint: Path = CHECKPOINT,
) -> dict[str, Any]:
    """{bench, model, dtype, device, versions, rows, ratios}: seconds, samples a second and peak memory.

    Args:
        shape: of `SHAPES`, with random weights; without one a checkpoint is chased.
        dtype: float32, float16 or bfloat16; on a CUDA device bfloat16, elsewhere float32.
        device: cpu or cuda; cuda where there is one.
        repeats: timed turns, at least 2.
        checkpoint: folder of a checkpoint of a supported family.

    Raises:
        SparseMMError: if one of them is unknown.
    """
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = dtype or ("bfloat16" if where.type == "cuda" else "float32")
    dtypes = [str(one).removeprefix("torch.") for one in library.DTYPES]
    for what, one, known in (("shape", shape, [None, *SHAPES]), ("dtype", dtype, dtypes)):
        if one not in known:
            raise SparseMMError(f"no {what} is called {one!r}", hint=f"one of {', '.join(filter(None, known))}")
    if repeats < 2:
        raise SparseMMError(f"{repeats} turns have no spread", hint="at least 2")
    given = of_shape(shape, dtype, where) if shape else of_checkpoint(checkpoint, dtype, where)
    times = measure(given, repeats, where)
    summary = clock.summary(times, {})
    rows: list[dict[str, Any]] = []
    with torch.inference_mode():
        for name, variant in VARIANTS.items():
            rate = round(len(given.alone) / statistics.median(times[name]), 3)
            row = {"variant": name, "samples_per_second": rate, "times": {name: summary[name]}}
            held = _longest(given) if name == "loop" else given
            rows.append(row | {"peak_bytes": peak_bytes(partial(variant, held), where)})
    words, versions = clock.machine(where)
    peaks: dict[str, int] = {row["variant"]: row["peak_bytes"] for row in rows}
    shapes = {
        "samples": len(given.alone),
        "positions": sum(int(batch.inputs["attention_mask"].sum()) for batch in given.batches),
        "answer_tokens": sum(len(one.answer) for one in given.alone),
        "weight_bytes": sum(p.numel() * p.element_size() for p in given.model.parameters()),
    }
    head = {"bench": "chase", "model": shape or checkpoint.name, "dtype": dtype, "device": words, "versions": versions}
    ratios = {
        "chase_over_forward": clock.ratio(times, "chase", "forward"),
        "loop_over_chase": clock.ratio(times, "loop", "chase"),
        "chase_over_forward_peak_bytes": round(peaks["chase"] / peaks["forward"], 3),
        "loop_over_chase_peak_bytes": round(peaks["loop"] / peaks["chase"], 3),
    }
    return head | shapes | {"rows": rows, "ratios": ratios}
