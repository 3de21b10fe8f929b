"""One batch -> hits: forward once over prompt and answer, compare each head's argmax with the word's tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sparsemm.attention_probe import observe_attention
from sparsemm.chase.attention import Recorder
from sparsemm.errors import AlignError

Positions = NDArray[np.int64]
TOKEN_TYPES = ("mm_token_type_ids", "token_type_ids")  # Qwen-VL's, Gemma 3's: 1 at image tokens, 0 at text and pads
MOST_PADDING = 0.05  # of a batch's positions: a forward pass works on padding as on tokens
NOWHERE = -1  # where a layer without attention heads looks
MOST_LOGITS = 1 << 25  # logits of the language-model head that exist together


@dataclass(frozen=True)
class Forced:
    """A batch with its answers appended.

    Attributes:
        inputs: what the model takes; row b of input_ids is [pads, prompt, answer].
        first_rows: first_rows[b] + i is the row that predicts answer token i of sample b.
    """

    inputs: dict[str, torch.Tensor]
    first_rows: list[int]


def append_answers(inputs: Mapping[str, torch.Tensor], answers: Sequence[Sequence[int]], pad_id: int) -> Forced:
    """Append an answer to every prompt and pad on the left again.

    Args:
        inputs: prompts from `sparsemm.prompts.build_inputs`: input_ids, attention_mask (B, S), pixel tensors.
        answers: token ids of each row's answer; may be empty.
        pad_id: token that fills the left.

    Raises:
        AlignError: if there is not one answer per prompt.
    """
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    if len(answers) != len(ids):
        raise AlignError(f"{len(answers)} answers for {len(ids)} prompts")
    lengths = mask.sum(dim=1).tolist()
    total = max(n + len(a) for n, a in zip(lengths, answers, strict=True))
    result = {key: value for key, value in inputs.items()}
    result["input_ids"] = ids.new_full((len(ids), total), pad_id)
    result["attention_mask"] = mask.new_zeros((len(ids), total))
    typed = [name for name in TOKEN_TYPES if name in inputs]
    for name in typed:
        result[name] = inputs[name].new_zeros((len(ids), total))
    first_rows = []
    for b, answer in enumerate(answers):
        prompt_end = total - len(answer)
        prompt = slice(prompt_end - lengths[b], prompt_end)
        real = mask[b].bool()
        result["input_ids"][b, prompt] = ids[b, real]
        result["input_ids"][b, prompt_end:] = ids.new_tensor(list(answer))
        result["attention_mask"][b, prompt.start :] = 1
        for name in typed:
            result[name][b, prompt] = inputs[name][b, real]
        first_rows.append(prompt_end - 1)
    return Forced(result, first_rows)


@dataclass(frozen=True)
class Looked:
    """What the rows of one sample look at and predict.

    Attributes:
        indices: (L, Hq, T) int64 on the CPU, key position in the padded row that each head attends to most; NOWHERE
            in layers with linear attention.
        predicted: (T,) int64 on the CPU, the model's own greedy next token at each row.
    """

    indices: torch.Tensor
    predicted: torch.Tensor


@torch.inference_mode()
def look(model: Any, inputs: Mapping[str, torch.Tensor], rows: Sequence[Sequence[int]]) -> list[Looked]:
    """One forward pass: where every head looks from the given rows, and what the model would say there.

    The language-model head runs over the given rows alone, a piece at a time. Where the weights of two keys differ by
    less than the model's rounding (about 1e-6 in fp32, 1e-2 in bf16), batching or decoding step by step may name the
    other one.

    Args:
        model: a Hugging Face image-text-to-text model in eval mode.
        inputs: prompts with answers, padded on the left, on any device.
        rows: rows[b], positions in the padded row b whose attention is looked at; may be empty.

    Raises:
        AlignError: if there is not one list of rows per sample, a row is outside the sequence or on padding, or there
            is padding inside a sample.
    """
    mask = inputs["attention_mask"]
    if len(rows) != len(mask):
        raise AlignError(f"{len(rows)} lists of rows for {len(mask)} samples")
    for b, one in enumerate(rows):
        if any(not 0 <= row < mask.shape[1] or not mask[b, row] for row in one):
            raise AlignError("a row is outside the sequence or on padding", where=f"sample {b}")
    moved = {k: v.to(model.device, model.dtype if v.is_floating_point() else v.dtype) for k, v in inputs.items()}
    base = getattr(model, model.base_model_prefix)
    # M-RoPE models work out positions from attention_mask; the others would count the pads in.
    if not hasattr(base, "get_rope_index"):
        moved["position_ids"] = (moved["attention_mask"].long().cumsum(dim=-1) - 1).clamp(min=0)
    deltas = getattr(base, "rope_deltas", None)
    recorder = Recorder(rows, _spans(mask))
    try:
        with observe_attention(model, recorder, recorder.spans):
            hidden = base(**moved, use_cache=False).last_hidden_state
    finally:
        if hasattr(base, "rope_deltas"):
            base.rope_deltas = deltas  # a generation under way keeps its own
    # The layers of a model may lie on several devices; those with linear attention look at no token.
    some = next(iter(recorder.found.values()))
    nothing = torch.full_like(some, NOWHERE, device="cpu")
    layers = range(model.config.get_text_config().num_hidden_layers)
    found = torch.stack([recorder.found[i].cpu() if i in recorder.found else nothing for i in layers])
    indices = found.split([len(one) for one in rows], dim=2)
    said = [_greedy(model.get_output_embeddings(), hidden[b, list(one)]) for b, one in enumerate(rows)]
    return [Looked(*one) for one in zip(indices, said, strict=True)]


def _spans(mask: torch.Tensor) -> list[tuple[int, int]]:
    """(first, stop) of the tokens of every row of an attention mask (B, S) that are no padding."""
    real = mask.bool().cpu()
    firsts, counts = real.byte().argmax(dim=1).tolist(), real.sum(dim=1).tolist()
    spans = [(first, first + count) for first, count in zip(firsts, counts, strict=True)]
    for b, (first, stop) in enumerate(spans):
        if not real[b, first:stop].all():
            raise AlignError("there is padding between tokens", where=f"sample {b}", hint="pad on the left")
    return spans


def _greedy(head: Any, hidden: torch.Tensor) -> torch.Tensor:
    """(T,) int64 on the CPU: the most likely next token at each row of (T, hidden size)."""
    step = max(1, MOST_LOGITS // head.weight.shape[0])
    return torch.cat([head(part).argmax(dim=-1) for part in hidden.split(step)]).cpu()


def collect(model: Any, inputs: Mapping[str, torch.Tensor], rows: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """The `indices` of `look` alone: one (L, Hq, T_b) int64 tensor per sample."""
    return [one.indices for one in look(model, inputs, rows)]


def score_sample(
    indices: torch.Tensor | Positions, targets: Sequence[Positions]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Hits of one sample: an argmax inside R_t counts 1, and 1 / |R_t| in the visual score.

    Args:
        indices, targets: see `inside`.

    Returns:
        hits: (L, Hq) int64.
        weighted: (L, Hq) float64.

    Raises:
        AlignError: if there is not one target per row, or one is empty.
    """
    hit = inside(indices, targets)
    return hit.sum(axis=2), (hit / np.array([len(target) for target in targets])).sum(axis=2)


def inside(indices: torch.Tensor | Positions, targets: Sequence[Positions]) -> NDArray[np.bool_]:
    """Which heads look at the box of which answer token, (L, Hq, T) bool.

    Args:
        indices: (L, Hq, T) int64 argmax positions; NOWHERE hits nothing.
        targets: R_t of each of the T answer tokens, positions on the same axis, no repeats, not empty.

    Raises:
        AlignError: if there is not one target per row, or one is empty.
    """
    found = np.asarray(indices)
    if found.ndim != 3 or found.shape[2] != len(targets):
        raise AlignError(f"{len(targets)} targets for indices of shape {found.shape}")
    for t, target in enumerate(targets):
        if len(target) == 0:
            raise AlignError("no visual token belongs to the answer token", where=f"token {t}")
    if not targets:
        return np.zeros(found.shape, dtype=bool)
    # One search for all tokens: token t's positions are moved to a stretch of numbers of their own.
    stretch = max(int(found.max(initial=0)), *(int(target.max()) for target in targets)) + 1
    wanted = np.concatenate([target + t * stretch for t, target in enumerate(targets)])
    return np.isin(found + np.arange(len(targets)) * stretch, wanted) & (found != NOWHERE)
