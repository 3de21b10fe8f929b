"""`sparsemm bench chase`: the chase against a plain forward pass, and against decoding with attention weights."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from sparsemm.models import load_model
from sparsemm.params import ModelParams
from sparsemm.params.datasets import SyntheticParams
from sparsemm.profiling import clock
from sparsemm.profiling.peak import peak_bytes
from sparsemm.profiling.shapes import SHAPES, random_model
from sparsemm.prompts import build_inputs

CHECKPOINT = Path("data/checkpoints/tiny-qwen2-vl")
PAGES = 32  # of a checkpoint
SAMPLES, PROMPT, ANSWER = 4, 2048, 64  # of random weights: prompts, their tokens, tokens of an answer
PROMPT_TEXT = "Read the page."

Inputs = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Samples:
    """A model and what it is chased over.

    Attributes:
        inputs: prompts with answers, padded on the left, on the model's device.
        rows: rows[b], the rows that predict the answer of sample b.
        targets: targets[b][t], visual positions of answer token t in the padded row.
        prompts: every prompt alone, without padding, on the model's device.
        answers: token ids.
    """

    model: Any
    inputs: Inputs
    rows: list[list[int]]
    targets: list[list[NDArray[np.int64]]]
    prompts: list[Inputs]
    answers: list[list[int]]


def of_checkpoint(folder: Path, dtype: str, device: torch.device) -> Samples:
    """Synthetic pages, their text as the answers, and a checkpoint that reads them."""
    from sparsemm.models import read_config

    layout = get_layout(family_of(read_config(str(folder))))
    entry = {"checkpoint": str(folder), "family": layout.family, "dtype": dtype}
    model, processor = load_model(ModelParams.model_validate(entry), str(device))
    pages = list(records(SyntheticParams(source="synthetic", split="calibration", samples=PAGES)))
    answers, owners = [], []
    for page in pages:
        pieces = [processor.tokenizer(e.text, add_special_tokens=False).input_ids for e in page.entries]
        answers.append([token for piece in pieces for token in piece])
        owners.append([j for j, piece in enumerate(pieces) for _ in piece])
    given = build_inputs(processor, [[page.image] for page in pages], [PROMPT_TEXT] * len(pages))
    forced = append_answers(given, answers, processor.tokenizer.pad_token_id)
    targets = []
    for b, page in enumerate(pages):
        (tokens,) = layout.image_tokens(model.config, forced.inputs, b, [page.image.size])
        targets.append([box_positions(tokens, page.entries[j].box) for j in owners[b]])
    alone = [_moved(build_inputs(processor, [[page.image]], [PROMPT_TEXT]), model) for page in pages]
    rows = [[first + t for t in range(len(a))] for first, a in zip(forced.first_rows, answers, strict=True)]
    return Samples(model, _moved(forced.inputs, model), rows, targets, alone, answers)


def of_shape(shape: str, dtype: str, device: torch.device) -> Samples:
    """Random tokens and a language model with random weights; there is no image, and nothing of it is timed."""
    model = random_model(SHAPES[shape], getattr(torch, dtype), device, PROMPT + ANSWER)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, SHAPES[shape].vocab_size, (SAMPLES, PROMPT), generator=generator)
    mask = torch.ones_like(ids)
    for b in range(SAMPLES):
        mask[b, : b * PROMPT // (8 * SAMPLES)] = 0  # prompts of different length
    answers = torch.randint(1, SHAPES[shape].vocab_size, (SAMPLES, ANSWER), generator=generator).tolist()
    forced = append_answers({"input_ids": ids, "attention_mask": mask}, answers, 0)
    rows = [[first + t for t in range(ANSWER)] for first in forced.first_rows]
    targets = [[np.arange(PROMPT // 2 + t, PROMPT // 2 + t + 4) for t in range(ANSWER)]] * SAMPLES
    alone = [{"input_ids": i[m.bool()][None], "attention_mask": m[m.bool()][None]} for i, m in zip(ids, mask, strict=True)]
    return Samples(model, _moved(forced.inputs, model), rows, targets, [_moved(one, model) for one in alone], answers)


def _moved(inputs: Any, model: Any) -> Inputs:
    return {k: v.to(model.device, model.dtype if v.is_floating_point() else v.dtype) for k, v in inputs.items()}


def forward(given: Samples) -> None:
    """A plain forward pass over the same tokens with sdpa, without a cache; logits of the last row alone."""
    inputs = dict(given.inputs)
    if not hasattr(getattr(given.model, given.model.base_model_prefix), "get_rope_index"):
        inputs["position_ids"] = (inputs["attention_mask"].cumsum(dim=-1) - 1).clamp(min=0)
    given.model(**inputs, use_cache=False, logits_to_keep=1)


def chase(given: Samples) -> None:
    """Teacher-forced: one forward pass, argmax and greedy token at every answer row, and hits of every head."""
    looked = look(given.model, given.inputs, given.rows)
    for one, targets in zip(looked, given.targets, strict=True):
        score_sample(one.indices, targets)


class _Force(LogitsProcessor):
    """Let generate say the given answer."""

    def __init__(self, length: int, answer: Sequence[int]) -> None:
        self.length, self.answer = length, answer

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self.answer[input_ids.shape[1] - self.length]] = 0.0
        return forced


def loop(given: Samples) -> None:
    """The public method: sample by sample, `generate` with eager attention that returns every weight.

    Kinder than the published code: the argmax is taken layer by layer, not head by head.
    """
    text = given.model.config.get_text_config()
    part = "" if text is given.model.config else "text_config"
    before = text._attn_implementation
    given.model.set_attn_implementation({part: "eager"})
    try:
        for prompt, answer, targets in zip(given.prompts, given.answers, given.targets, strict=True):
            out = given.model.generate(
                **prompt,
                do_sample=False,
                max_new_tokens=len(answer),
                eos_token_id=None,
                pad_token_id=0,
                logits_processor=[_Force(prompt["input_ids"].shape[1], answer)],
                output_attentions=True,
                return_dict_in_generate=True,
            )
            found = [torch.stack([layer[0, :, -1].argmax(dim=-1).cpu() for layer in step]) for step in out.attentions]
            score_sample(torch.stack(found, dim=-1), targets)
    finally:
        given.model.set_attn_implementation({part: before})


VARIANTS: dict[str, Callable[[Samples], None]] = {"forward": forward, "chase": chase, "loop": loop}


@torch.inference_mode()
def measure(given: Samples, repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of every variant, called in turns after one call each; the loop in every third turn, at least twice."""
    times: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for turn in range(repeats + 1):
        for name, variant in VARIANTS.items():
            if name == "loop" and turn % 3 and turn > 2:
                continue
            began = clock.now(device)
            variant(given)
            if turn:
                times[name].append(clock.now(device) - began)
    return times


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
    rows = []
    with torch.inference_mode():
        for name, variant in VARIANTS.items():
            row = {"variant": name, "samples": len(given.rows), "times": {name: summary[name]}}
            row["samples_per_second"] = round(len(given.rows) / statistics.median(times[name]), 3)
            rows.append(row | {"peak_bytes": peak_bytes(lambda variant=variant: variant(given), where)})
    words, versions = clock.machine(where)
    peaks = {row["variant"]: row["peak_bytes"] for row in rows}
    shapes = {
        "positions": int(given.inputs["attention_mask"].sum()),
        "answer_tokens": sum(map(len, given.answers)),
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
