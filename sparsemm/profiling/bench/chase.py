"""`sparsemm bench chase`: times the chase against a plain forward pass, and against decoding with attention weights."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LogitsProcessor

from sparsemm.chase.shards import find_hits
from sparsemm.chase.strongest_keys import strongest_keys
from sparsemm.errors import SparseMMError
from sparsemm.profiling import clock
from sparsemm.profiling.bench import arithmetic
from sparsemm.profiling.bench.chase_samples import Samples, Sizes, of_checkpoint, of_shape
from sparsemm.profiling.held_bytes import peak_bytes
from sparsemm.profiling.shapes import SHAPES, free_bytes

CHECKPOINT = Path("data/checkpoints/tiny-qwen2-vl")


def forward(samples: Samples) -> None:
    """Runs a plain forward pass over the same tokens with sdpa, without a cache; logits of the last row alone."""
    model = samples.model
    for batch in samples.batches:
        inputs = dict(batch.inputs)
        if not hasattr(getattr(model, model.base_model_prefix), "get_rope_index"):
            inputs["position_ids"] = (inputs["attention_mask"].cumsum(dim=-1) - 1).clamp(min=0)
        model(**inputs, use_cache=False, logits_to_keep=1)


def chase(samples: Samples) -> NDArray[np.float64]:
    """Scores the heads with teacher forcing: strongest keys and greedy tokens in one forward pass; (L, Hq) scores."""
    scores: Any = 0
    for batch in samples.batches:
        for keys, targets in zip(strongest_keys(samples.model, batch.inputs, batch.rows), batch.targets, strict=True):
            hits = find_hits(keys.positions, targets)
            scores = scores + (hits / np.array([len(target) for target in targets])).sum(axis=2)
    return scores


class _Force(LogitsProcessor):
    """Makes `generate` return a certain answer."""

    def __init__(self, length: int, answer: Sequence[int]) -> None:
        self.length, self.answer = length, answer

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self.answer[input_ids.shape[1] - self.length]] = 0.0
        return forced


def loop(samples: Samples) -> NDArray[np.float64]:
    """Returns (L, Hq) scores as the public code does: `generate` page by page, with eager attention's weights."""
    model = samples.model
    text = model.config.get_text_config()
    part = "" if text is model.config else "text_config"
    before = text._attn_implementation
    scores = np.zeros((text.num_hidden_layers, text.num_attention_heads))
    model.set_attn_implementation({part: "eager"})
    try:
        for sample in samples.alone:
            out = model.generate(
                **sample.prompt,
                do_sample=False,
                max_new_tokens=len(sample.answer),
                eos_token_id=None,
                pad_token_id=0,
                logits_processor=[_Force(sample.prompt["input_ids"].shape[1], sample.answer)],
                output_attentions=True,
                return_dict_in_generate=True,
            )
            for t, positions in zip(sample.index, sample.targets, strict=True):
                target = set(positions.tolist())
                for layer, weights in enumerate(out.attentions[t]):
                    for head in range(weights.shape[1]):
                        if int(weights[0, head, -1].argmax()) in target:
                            scores[layer, head] += 1 / len(target)
    finally:
        model.set_attn_implementation({part: before})
    return scores


Variants = dict[str, Callable[[Samples], Any]]
VARIANTS: Variants = {"forward": forward, "chase": chase, "loop": loop}


def too_large(samples: Samples, device: torch.device) -> str | None:
    """Returns why the loop cannot run, if the attention weights of the longest prompt exceed the memory; else None."""
    text = samples.model.config.get_text_config()
    positions = samples.longest().alone[0].prompt["input_ids"].shape[1]
    # The weights that every layer returns, and in fp32 the logits, masked logits and softmax of one layer.
    each = text.num_hidden_layers * samples.model.dtype.itemsize + 3 * 4
    needed, free = text.num_attention_heads * positions**2 * each, free_bytes(device)
    if free is None or needed <= free:
        return None
    available = f"{free / 2**30:.1f} GiB of {device.type} memory are available"
    return f"the weights of {positions} tokens need {needed / 2**30:.1f} GiB, {available}"


@torch.inference_mode()
def decoder_share(samples: Samples, device: torch.device) -> float:
    """Returns the language model's share of the time of a plain forward pass; the images take most of the rest."""
    marks: list[float] = []

    def mark(*_: Any) -> None:
        marks.append(clock.now(device))

    decoder = samples.model.get_decoder()
    hooks = [decoder.register_forward_pre_hook(mark), decoder.register_forward_hook(mark)]
    try:
        whole = clock.seconds(partial(forward, samples), device)
    finally:
        for hook in hooks:
            hook.remove()
    return round((sum(marks[1::2]) - sum(marks[::2])) / whole, 3)


@torch.inference_mode()
def measure(samples: Samples, variants: Variants, repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Times every variant over all samples, in turns after a warm-up; the slow loop runs in every third turn."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for name, variant in variants.items():
        variant(samples.longest() if name == "loop" else samples)
    for turn in range(repeats):
        for name, variant in variants.items():
            if name != "loop" or turn % 3 == 0:
                times[name].append(clock.seconds(partial(variant, samples), device))
    return times


def run(
    shape: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    repeats: int = 9,
    checkpoint: Path = CHECKPOINT,
    sizes: Sizes | None = None,
) -> dict[str, Any]:
    """Measures seconds, samples per second and peak memory of the variants.

    Args:
        shape: one of `SHAPES`, with random weights, and prompts and answers of `sizes`; None runs the checkpoint.
        dtype: float32, float16 or bfloat16; by default `fastest_dtype` of the device.
        device: cpu or cuda; by default cuda if there is one.
        repeats: timed turns, at least 2.

    Returns {bench, model, dtype, device, load, date, versions, rows, ratios}. Raises SparseMMError if an option is
    unknown, sizes are given without a shape, there is too little memory, or there is no such device.
    """
    where = clock.device_of(device)
    dtype = dtype or arithmetic.fastest_dtype(where)
    clock.check_options(shape, SHAPES, dtype, repeats)
    if sizes and not shape:
        raise SparseMMError("the pages of a checkpoint have their own sizes", hint="give --shape, or no sizes")
    heading = clock.heading("chase", where, model=shape or checkpoint.name, dtype=dtype)
    samples = of_shape(shape, dtype, where, sizes or Sizes()) if shape else of_checkpoint(checkpoint, dtype, where)
    left_out = too_large(samples, where)
    variants = {name: variant for name, variant in VARIANTS.items() if name != "loop" or not left_out}
    times = measure(samples, variants, repeats, where)
    rows = _rows(samples, variants, times, where)
    ratios = _ratios(times, rows, samples.counts()["kv_bytes"])
    with torch.inference_mode():
        rows[0]["flops"] = arithmetic.flops(partial(forward, samples))
        rows[0]["matmul_flops_per_second"] = round(arithmetic.matmul_rate(samples.model.dtype, where))
    if not shape:
        rows[0]["decoder_share"] = statistics.median(decoder_share(samples, where) for _ in range(repeats))
    if not left_out:  # no chase that computes a forward pass is faster
        bound = rows[0]["flops"] / rows[0]["matmul_flops_per_second"]
        ratios["loop_over_arithmetic"] = round(statistics.median(times["loop"]) / bound, 3)
    rows += [{"variant": "loop", "left_out": left_out}] if left_out else []
    return heading | samples.counts() | {"rows": rows, "ratios": ratios}


@torch.inference_mode()
def _rows(
    samples: Samples, variants: Variants, times: dict[str, list[float]], device: torch.device
) -> list[dict[str, Any]]:
    """Returns the timings by variant, and the peak memory of one more call of each."""
    summary = clock.summary(times, {})
    rows = []
    for name, variant in variants.items():
        rate = round(len(samples.alone) / statistics.median(times[name]), 3)
        peak = peak_bytes(partial(variant, samples.longest() if name == "loop" else samples), device)
        rows.append({"variant": name, "samples_per_second": rate, "times": {name: summary[name]}, "peak_bytes": peak})
    return rows


def _ratios(times: dict[str, list[float]], rows: list[dict[str, Any]], kv_bytes: int) -> dict[str, Any]:
    """Returns ratios of the variants, those of the loop only if it was run."""
    peaks: dict[str, int] = {row["variant"]: row["peak_bytes"] for row in rows}
    result = {
        "chase_over_forward": clock.ratio(times, "chase", "forward"),
        "chase_over_forward_peak_bytes": round(peaks["chase"] / peaks["forward"], 3),
        "chase_extra_over_kv": round((peaks["chase"] - peaks["forward"]) / kv_bytes, 4),
    }
    if "loop" in peaks:
        result |= {
            "loop_over_chase": clock.ratio(times, "loop", "chase"),
            "loop_over_forward": clock.ratio(times, "loop", "forward"),
            "loop_over_chase_peak_bytes": round(peaks["loop"] / peaks["chase"], 3),
        }
    return result
