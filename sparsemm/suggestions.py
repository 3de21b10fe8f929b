"""Suggests settings for a new model from the length of its prompts, and estimates what running its stages takes."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from sparsemm.params import ModelParams, Params
from sparsemm.params.models import OVERRIDDEN
from sparsemm.recipes import SCENARIOS

PAGE = (1224, 1584)  # pixels of a letter page at 144 dots an inch, the default of PDF data sets
LONG = 512  # tokens; the settings in params.yaml suit prompts of about 100
WINDOW, SMALLEST, MOST = 32, 64, 4  # window, the smallest budget, and how many budgets are tried
ANSWER = 512  # tokens of a page that is read aloud
TOKENS = 16_384  # of prompts that go through a model together
# What the estimates assume of a GPU, an A100 for example: half of what its data sheet says is reached.
FLOPS, BYTES, STEP = 150e12, 1e12, 0.03  # per second; seconds of a decode step in transformers, at least
GPUS = {24: "an L4, A10 or RTX 4090", 48: "an L40S or A6000", 80: "an A100 or H100 of 80 GB", 141: "an H200"}  # GB


@dataclass(frozen=True)
class Needs:
    """What decides about settings, time and memory."""

    parameters: int  # number of weights
    row_bytes: int  # bytes of keys and values of one prompt token, all full-attention layers together
    prompt: int  # tokens of the prompt that shows a letter page
    weight_bytes: int  # bytes of the weights in memory


def needs_of(entry: ModelParams) -> Needs:
    """Measures a model without its weights: its processor reads a blank page, and the model is built without storage.

    Raises ModelError if config.json or the processor's files are missing or cannot be read.
    """
    import torch

    from sparsemm.compat import define_missing_torchvision_operators

    define_missing_torchvision_operators()
    from PIL import Image
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    from sparsemm.cache.served import layers_of
    from sparsemm.models import transformers_errors
    from sparsemm.prompts import build_inputs

    options: dict[str, Any] = {"revision": entry.revision, "trust_remote_code": False}
    with transformers_errors(entry.checkpoint, "are the processor's files complete?"):
        config = AutoConfig.from_pretrained(entry.checkpoint, **options)
        processor = AutoProcessor.from_pretrained(entry.checkpoint, **options)
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config, dtype=getattr(torch, entry.dtype))
        inputs = build_inputs(processor, [[Image.new("RGB", PAGE, "white")]], ["Read the page."])
    text = config.get_text_config()
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    number = getattr(torch, entry.dtype).itemsize
    parameters = sum(weights.numel() for weights in model.parameters())
    stored = {"4bit": 0.55, "8bit": 1.05}.get(entry.load_in or "", float(number))
    rows = 2 * heads * width * number * len(layers_of(text, entry.checkpoint)[1])
    return Needs(parameters, rows, int(inputs["input_ids"].shape[1]), int(parameters * stored))


def overrides(params: Params, needs: Needs) -> dict[str, Any]:
    """Returns what a model's entry should override: nothing for short prompts, which params.yaml already suits.

    Budgets anywhere in params.yaml become the model's own of the same rank: the smallest becomes the smallest. Where
    params.yaml tunes, such a model is tuned for every scenario, long answers included.
    """
    if needs.prompt < LONG:
        return {}
    # Powers of two up to a quarter of the prompt.
    budgets = [SMALLEST << i for i in range(MOST) if i == 0 or SMALLEST << i <= needs.prompt // 4]
    batch = max(1, TOKENS // needs.prompt)

    def moved(budget: int) -> int:
        rank = sum(own < budget for own in params.allocate.budgets)
        return budgets[min(rank, len(budgets) - 1)]

    def with_budgets(values: dict[str, Any]) -> dict[str, Any]:
        changed: dict[str, Any] = {}
        for name, value in values.items():
            if name == "budget" and isinstance(value, int):
                changed[name] = moved(value)
            elif name in ("budgets", "later") and isinstance(value, list) and value:  # `later` of the study oracle
                changed[name] = sorted({moved(one) for one in value})
            elif isinstance(value, dict) and (inner := with_budgets(value)):
                changed[name] = inner
        return changed

    declared = params.model_dump(mode="json", exclude_unset=True)
    result = {name: with_budgets(declared.get(name) or {}) for name in OVERRIDDEN}
    result["allocate"] = {"window": WINDOW, "budgets": budgets}
    result["profile"] |= {"lengths": sorted({1024, needs.prompt, 8192})}
    if result["tune"]:
        result["tune"]["scenarios"] = list(SCENARIOS)
    for name in ("chase", "evaluate"):
        result[name] |= {"batch_size": batch} if getattr(params, name).batch_size > batch else {}
        result[name] |= {"max_new_tokens": ANSWER}
    return {name: value for name, value in result.items() if value}


def suggested_entry(params: Params, entry: ModelParams, needs: Needs) -> ModelParams:
    """Returns an entry with the suggested overrides, those it has already staying as they are."""
    own = {name: value for name, value in overrides(params, needs).items() if not getattr(entry, name)}
    return entry.model_copy(update=copy.deepcopy(own))


def advice(params: Params, needs: Needs) -> list[str]:
    """Returns lines for whoever adds a model: its prompts, the data that suits it, and what its stages will take.

    Args:
        params: with the model's overrides applied.
    """
    lines = [
        f"{needs.parameters / 1e6:.0f} million weights ({needs.weight_bytes / 1e9:.2g} GB), "
        f"{needs.row_bytes / 1e3:.3g} kB of cache for a token; a letter page at 144 dpi is a prompt of "
        f"{needs.prompt} tokens"
    ]
    if needs.prompt < LONG:
        return [*lines, "prompts are short: window and budgets of params.yaml suit it, and so do its synthetic pages"]
    sources = {params.datasets[name].source for name in (params.chase.dataset, params.evaluate.dataset)}
    if "synthetic" in sources:
        lines.append(
            "data: the synthetic pages are for small test models. Score it on about 200 of your own PDF pages (source: "
            "pdf) or on 1000 of SynthDoG (source: hub, format: synthdog): docs/data.md"
        )
    memory = needed_memory(params, needs)
    device = next((f"{size} GB, such as {name}" for size, name in GPUS.items() if memory < size), None)
    device = f"a GPU of {device}" if device else "several GPUs (device_map: auto), or load_in: 4bit"
    chase, evaluate = needed_time(params, needs)
    lines.append(
        f"estimated from sizes, not measured: {memory:.0f} GB of GPU memory, so {device}; on an A100 at most "
        f"{max(chase / 60, 1):.0f} minutes for scores and {max(evaluate / 3600, 0.1):.1f} hours for the evaluation"
    )
    return lines


def needed_memory(params: Params, needs: Needs) -> float:
    """Estimates the GPU memory of the stages in GB (10^9 bytes): weights, caches of a batch, a fifth, and 2 GB."""
    batch = max(params.chase.batch_size, params.evaluate.batch_size)
    cache = 2 * batch * (needs.prompt + ANSWER) * needs.row_bytes  # the whole prompt, and a method's copy of it
    return 1.2 * (needs.weight_bytes + cache) / 1e9 + 2


def needed_time(params: Params, needs: Needs) -> tuple[float, float]:
    """Estimates the seconds that scores and evaluation take at most on one GPU, answers in full length."""
    from sparsemm.policies import budgets_of, policy_class

    step = max(STEP, needs.weight_bytes / BYTES)
    prefill = 2 * needs.parameters * needs.prompt / FLOPS
    pages = params.datasets[params.chase.dataset].samples
    batches = -(-pages // params.chase.batch_size)
    chase = 2 * pages * prefill + batches * params.chase.max_new_tokens * step
    evaluate = params.evaluate
    answers = sum(
        len(budgets_of(method, params.allocate.budgets)) * (evaluate.random_seeds if policy_class(method).drawn else 1)
        for method in evaluate.methods
    )
    batches = -(-evaluate.samples // evaluate.batch_size)
    each = evaluate.samples * prefill + batches * answers * evaluate.max_new_tokens * step
    return chase, each * len(evaluate.tasks)
