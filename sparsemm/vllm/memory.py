"""Computes how many requests fit into memory, full and compressed, without vLLM."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sparsemm.errors import BudgetError
from sparsemm.vllm import methods
from sparsemm.vllm.plan import Columns, Plan, like_layers

UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass(frozen=True)
class Fit:
    """What a KV cache holds of requests of one length.

    Attributes:
        groups: block tables.
        bytes_whole: of a request in full, at its last token.
        bytes_held: of a compressed request, at its last token.
        whole, compressed: requests at once, one of them still with its whole prompt.
    """

    groups: int
    bytes_whole: int
    bytes_held: int
    whole: int
    compressed: int


def fit(plan: Plan, block_size: int, row_bytes: int, prompt: int, new: int, memory: int) -> Fit:
    """How many requests of `prompt` tokens, answered with `new` tokens, fit into `memory` bytes.

    Args:
        plan: with its buckets.
        block_size: rows of a block.
        row_bytes: of a key and a value of one KV head.
    """
    columns = [Columns.of(plan, bucket, block_size, prompt) for bucket in plan.buckets]
    block = len(plan.buckets[0]) * plan.num_kv_heads * block_size * row_bytes
    whole = len(columns) * block * -(-(prompt + new) // block_size)
    held = block * sum(each.held(new) for each in columns)
    most = block * sum(each.whole + (each.kept if plan.copy else 0) for each in columns)  # while the prompt is there
    compressed = max(0, 1 + (memory - max(most, held)) // held) if memory >= max(most, held) else 0
    return Fit(len(columns), whole, held, memory // whole, compressed)


def fits(
    config: Any,
    method: str,
    budget: int | None,
    scores: str | None,
    options: dict[str, Any],
    prompt: int,
    new: int,
    memory: int,
    *,
    block_size: int = 16,
    dtype_bytes: int = 2,
) -> list[Fit]:
    """`fit` of a model for every number of groups that divides its layers.

    Args:
        config: of the model, as transformers loads it.
        method, budget, scores, options: as in additional_config.

    Raises:
        BudgetError: if method, budget or scores are impossible, or scores are missing.
        ScoreTableError: if the scores are another model's.
    """
    from sparsemm.registry.lookup import look_up

    text = config.get_text_config()
    layers = methods.full_layers(text, str(config.model_type))
    matrix = None
    if methods.needs_scores(method):
        if scores is None:
            raise BudgetError(f"{method} needs head scores", hint="pass --scores, or --method snapkv for an estimate")
        table, _ = methods.read_scores(look_up(scores), config, layers)
        matrix = tuple(tuple(float(score) for score in row) for row in table)
    window = methods.window_of(method, budget, matrix, options)
    rest = tuple(sorted((name, value) for name, value in options.items() if name != "window"))
    plan = Plan(method, text.num_key_value_heads, layers, budget or 0, window, rest, matrix, False, 1)
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    counts = [count for count in range(1, len(layers) + 1) if len(layers) % count == 0]
    plans = [replace(plan, buckets=like_layers(plan, count)) for count in counts]
    return [fit(each, block_size, 2 * head * dtype_bytes, prompt, new, memory) for each in plans]


def parse_bytes(text: str) -> int:
    """A number of bytes such as 80G, 512M or 1000000.

    Raises:
        BudgetError: if it is none.
    """
    unit = UNITS.get(text[-1:].upper(), 1)
    digits = text[:-1] if unit > 1 else text
    try:
        number = int(float(digits) * unit)
    except ValueError:
        number = 0
    if number < 1:
        raise BudgetError(f"{text!r} is no amount of memory", hint="write it as in 80G or 512M")
    return number
