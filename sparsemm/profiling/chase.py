"""`sparsemm bench chase`: the chase against a plain forward pass, and against decoding with attention weights."""

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
from sparsemm.profiling import arithmetic, clock
from sparsemm.profiling.memory import peak_bytes
from sparsemm.profiling.samples import Samples, Sizes, of_checkpoint, of_shape
from sparsemm.profiling.shapes import SHAPES, free_bytes

CHECKPOINT = Path("data/checkpoints/tiny-qwen2-vl")


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
        for keys, targets in zip(strongest_keys(given.model, batch.inputs, batch.rows), batch.targets, strict=True):
            hits = find_hits(keys.positions, targets)
            scores = scores + (hits / np.array([len(target) for target in targets])).sum(axis=2)
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
            for t, target in zip(one.index, one.targets, strict=True):
                wanted = set(target.tolist())
                for at, layer in enumerate(out.attentions[t]):
                    for head in range(layer.shape[1]):
                        if int(layer[0, head, -1].argmax()) in wanted:
                            scores[at, head] += 1 / len(wanted)
    finally:
        given.model.set_attn_implementation({part: before})
    return scores


Variants = dict[str, Callable[[Samples], Any]]
VARIANTS: Variants = {"forward": forward, "chase": chase, "loop": loop}


def too_large(given: Samples, device: torch.device) -> str | None:
    """Why the loop over the longest prompt cannot be run, if it cannot: its attention weights have no room."""
    text = given.model.config.get_text_config()
    positions = given.longest().alone[0].prompt["input_ids"].shape[1]
    # What every layer returns, and in fp32 the logits, their softmax and the masked logits of one layer.
    each = text.num_hidden_layers * given.model.dtype.itemsize + 3 * 4
    wanted, found = text.num_attention_heads * positions**2 * each, free_bytes(device)
    if found is None or wanted <= found:
        return None
    there = f"{found / 2**30:.1f} GiB of {device.type} memory are there for them"
    return f"the weights of {positions} tokens take {wanted / 2**30:.1f} GiB, {there}"


@torch.inference_mode()
def decoder_share(given: Samples, device: torch.device) -> float:
    """Share of a plain forward pass that the language model takes; most of the rest are the images."""
    marks: list[float] = []

    def mark(*_: Any) -> None:
        marks.append(clock.now(device))

    decoder = given.model.get_decoder()
    hooks = [decoder.register_forward_pre_hook(mark), decoder.register_forward_hook(mark)]
    try:
        whole = clock.seconds(partial(forward, given), device)
    finally:
        for hook in hooks:
            hook.remove()
    return round((sum(marks[1::2]) - sum(marks[::2])) / whole, 3)


@torch.inference_mode()
def measure(given: Samples, variants: Variants, repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of every variant over all samples, called in turns after a warm-up.

    The loop, which is slow, takes every third turn.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    for name, variant in variants.items():
        variant(given.longest() if name == "loop" else given)
    for turn in range(repeats):
        for name, variant in variants.items():
            if name == "loop" and turn % 3:
                continue
            began = clock.now(device)
            variant(given)
            times[name].append(clock.now(device) - began)
    return times


def run(
    shape: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    repeats: int = 9,
    checkpoint: Path = CHECKPOINT,
    sizes: Sizes | None = None,
) -> dict[str, Any]:
    """{bench, model, dtype, device, load, date, versions, rows, ratios}: seconds, samples a second and peak memory.

    Args:
        shape: of `SHAPES`, with random weights; without one a checkpoint is chased.
        dtype: float32, float16 or bfloat16, of all three; `quickest_dtype` of the device where none is given.
        device: cpu or cuda; cuda where there is one.
        repeats: timed turns, at least 2.
        checkpoint: folder of a checkpoint of a supported family.
        sizes: of the random prompts and answers of a shape.

    Raises:
        SparseMMError: if one of them is unknown, sizes are given without a shape, there is too little memory, or the
            device is not there.
    """
    where = clock.device_of(device)
    dtype = dtype or arithmetic.quickest_dtype(where)
    clock.check_options(shape, SHAPES, dtype, repeats)
    if sizes and not shape:
        raise SparseMMError("the pages of a checkpoint have their own sizes", hint="give --shape, or no sizes")
    head = clock.heading("chase", where, model=shape or checkpoint.name, dtype=dtype)
    given = of_shape(shape, dtype, where, sizes or Sizes()) if shape else of_checkpoint(checkpoint, dtype, where)
    left_out = too_large(given, where)
    variants = {name: variant for name, variant in VARIANTS.items() if name != "loop" or not left_out}
    times = measure(given, variants, repeats, where)
    rows = _rows(given, variants, times, where)
    ratios = _ratios(times, rows, given.counts()["kv_bytes"])
    rows[0] |= _limit(given, where)
    if not shape:
        rows[0]["decoder_share"] = statistics.median(decoder_share(given, where) for _ in range(repeats))
    if not left_out:  # no chase that computes a forward pass is quicker
        bound = rows[0]["flops"] / rows[0]["matmul_flops_per_second"]
        ratios["loop_over_arithmetic"] = round(statistics.median(times["loop"]) / bound, 3)
    rows += [{"variant": "loop", "left_out": left_out}] if left_out else []
    return head | given.counts() | {"rows": rows, "ratios": ratios}


@torch.inference_mode()
def _limit(given: Samples, device: torch.device) -> dict[str, int]:
    """Operations of the plain forward pass, and how many a second the device does in a product of large matrices."""
    rate = arithmetic.matmul_rate(given.model.dtype, device)
    return {"flops": arithmetic.flops(partial(forward, given)), "matmul_flops_per_second": round(rate)}


@torch.inference_mode()
def _rows(
    given: Samples, variants: Variants, times: dict[str, list[float]], device: torch.device
) -> list[dict[str, Any]]:
    """What was timed, by variant, and the peak memory of one more call of each."""
    summary = clock.summary(times, {})
    rows = []
    for name, variant in variants.items():
        rate = round(len(given.alone) / statistics.median(times[name]), 3)
        held = given.longest() if name == "loop" else given
        peak = peak_bytes(partial(variant, held), device)
        rows.append({"variant": name, "samples_per_second": rate, "times": {name: summary[name]}, "peak_bytes": peak})
    return rows


def _ratios(times: dict[str, list[float]], rows: list[dict[str, Any]], kv_bytes: int) -> dict[str, Any]:
    """What `rows` say of each other; those of the loop where it was run."""
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
