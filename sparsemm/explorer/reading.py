"""Records what every head attends to while a model reads a page, and what every method keeps of the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sparsemm.align.stage import greedy_answers
from sparsemm.align.words import align_answer, token_spans
from sparsemm.attention_probe import AttentionCall, observe_attention
from sparsemm.budgets import load_budgets
from sparsemm.datasets.records import Record, read_records
from sparsemm.explorer.keeping import Choice, caches, kept_positions
from sparsemm.layouts import get_layout
from sparsemm.layouts.tokens import ImageTokens, box_positions
from sparsemm.models import load_model
from sparsemm.params import ModelParams, Params
from sparsemm.prompts import append_answers, build_inputs, move_inputs
from sparsemm.scores import ScoreTable

MOST_BYTES = 512 * 2**20  # most bytes of weights that are loaded without a GPU
MOST_TOKENS = 64  # most tokens of an answer
PAGES = 2  # number of pages
SEARCHED = 32  # first evaluation pages, among which pages of different shapes are chosen


@dataclass(frozen=True)
class Token:
    """A token of the answer."""

    text: str  # text that it adds to the answer
    entry: int | None  # index of its word on the page, or None
    cells: list[int]  # numbers of the visual tokens that cover this word


@dataclass(frozen=True)
class Reading:
    """What a model with L layers of Hq heads attends to on a page of N visual tokens, for T answer tokens.

    The prompt has S tokens.
    """

    record: Record  # the page
    tokens: list[Token]  # first tokens of the answer, at most `MOST_TOKENS`
    left_out: int  # number of tokens after these
    answer: str  # text of the whole answer
    rectangles: NDArray[np.float64]  # (N, 4) float64, (x0, y0, x1, y1) in pixels of the page
    coarse: NDArray[np.bool_]  # (N,) bool, true for tokens of the thumbnail, if the family has one
    positions: NDArray[np.int64]  # (N,) int64 positions of the visual tokens in the prompt
    # (L, Hq, T, N) uint8, attention of the row that predicts the token, as `to_levels` rounds it
    levels: NDArray[np.uint8]
    sums: NDArray[np.float32]  # (L, Hq, T, 2) fp32, total attention on the page and on its thumbnail
    # (L, Hq, T) int64, the visual token with more attention than any other position, or -1 if there is none
    peak: NDArray[np.int64]
    prompt: int  # S
    kept: dict[Choice, NDArray[np.bool_]]  # (L, Hkv, S) bool by method and budget


def too_much_to_load(entry: ModelParams) -> str | None:
    """Returns why a checkpoint is not loaded for the explorer; None if there is a GPU or it is small and local."""
    if torch.cuda.is_available():
        return None
    folder = Path(entry.checkpoint)
    if not folder.is_dir():
        return "without a GPU only small local checkpoints are loaded, this one is not a local folder"
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if size > MOST_BYTES:
        return f"without a GPU checkpoints up to {MOST_BYTES // 2**20} MiB are loaded, this one has {size / 2**20:.0f}"
    return None


def pages(records: Sequence[Record], count: int = PAGES) -> list[Record]:
    """Returns the first pages of different shapes, followed by the first other pages if there are too few."""
    by_size = {record.image.size: record for record in reversed(records)}
    first = sorted(by_size.values(), key=records.index)
    return (first + [record for record in records if record not in first])[:count]


@torch.inference_mode()
def read_pages(params: Params, key: str, table: ScoreTable, root: Path = Path(".")) -> list[Reading]:
    """Lets a model read some evaluation pages; none if the evaluation set is empty.

    Raises BudgetError or DataError if the budgets or the evaluation pages are missing, ModelError if the checkpoint is
    not the one in params.yaml, and ScoreTableError if the table belongs to another model.
    """
    entry, evaluate = params.models[key], params.evaluate
    path = root / "artifacts" / "datasets" / f"{evaluate.dataset}.parquet"
    records = pages(read_records(path, limit=SEARCHED))
    if not records:
        return []
    model, processor = load_model(entry)
    table.check_model(model.config)
    plan = load_budgets(root / "artifacts" / "budgets" / f"{key}.json")
    empty = caches(model, table, evaluate.methods, plan.budgets, plan.settings, evaluate.pooling_kernel, evaluate.seed)
    return [read_page(params, entry, model, processor, table, record, empty) for record in records]


class Recorder:
    """An observer of one forward over prompt and answer that records what heads attend to and what is kept.

    Args:
        shape: (L, Hq, Hkv) of the model.
        rows: (T,) int64 rows that predict the tokens.
        parts: visual tokens of the page, and of its thumbnail.
        prompt: number of tokens in the prompt, S.
        total: number of tokens in prompt and answer.
        empty: empty cache by method and budget.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        rows: torch.Tensor,
        parts: list[ImageTokens],
        prompt: int,
        total: int,
        empty: dict[Choice, Any],
    ) -> None:
        layers, heads, kv_heads = shape
        self.rows, self.prompt, self.empty = rows, prompt, empty
        self.positions = np.concatenate([part.positions for part in parts])
        self.coarse = np.concatenate([np.full(len(part.positions), number > 0) for number, part in enumerate(parts)])
        self.levels = np.zeros((layers, heads, len(rows), len(self.positions)), dtype=np.uint8)
        self.sums = np.zeros((layers, heads, len(rows), 2), dtype=np.float32)
        self.peak = np.full((layers, heads, len(rows)), -1, dtype=np.int64)
        self.kept = {choice: np.zeros((layers, kv_heads, prompt), dtype=bool) for choice in empty}
        self.cell = np.full(total, -1, dtype=np.int64)
        self.cell[self.positions] = np.arange(len(self.positions))

    def __call__(self, call: AttentionCall) -> None:
        """Records one layer."""
        layer, weights = call.layer, call.weights(self.rows).cpu().numpy()
        self.peak[layer] = self.cell[weights.argmax(-1)]
        on_page = weights[..., self.positions]
        self.levels[layer] = to_levels(on_page)
        self.sums[layer] = np.stack([on_page[..., ~self.coarse].sum(-1), on_page[..., self.coarse].sum(-1)], axis=-1)
        before = call.query[:, :, : self.prompt], call.key[:, :, : self.prompt]
        for choice, cache in self.empty.items():
            self.kept[choice][layer] = kept_positions(cache.layers[layer], *before, call.scaling).numpy()


def read_page(
    params: Params,
    entry: ModelParams,
    model: Any,
    processor: Any,
    table: ScoreTable,
    record: Record,
    empty: dict[Choice, Any],
) -> Reading:
    """Reads one page: generates the model's answer, then runs one forward over prompt and answer."""
    prompt = params.chase.prompt
    (answer,) = greedy_answers(model, processor, [record], prompt, params.chase.max_new_tokens)
    inputs = build_inputs(processor, [[record.image]], [prompt]).to(model.device)
    length = inputs["input_ids"].shape[1]
    forced = append_answers(inputs, [answer], processor.tokenizer.pad_token_id)
    (image,) = get_layout(entry.family).image_tokens(model.config, forced.inputs, 0, [record.image.size])
    parts = [image, *([image.thumbnail] if image.thumbnail is not None else [])]
    tokens = answer_tokens(record, answer, processor.tokenizer, entry.family, image)[:MOST_TOKENS]
    rows = torch.arange(len(tokens), dtype=torch.int64, device=model.device) + forced.first_rows[0]
    shape = (*table.scores.shape, table.header["num_kv_heads"])
    recorder = Recorder(shape, rows, parts, length, length + len(answer), empty)
    with observe_attention(model, recorder):
        getattr(model, model.base_model_prefix)(**move_inputs(forced.inputs, model), use_cache=False)
    return Reading(
        record=record,
        tokens=tokens,
        left_out=len(answer) - len(tokens),
        answer=processor.tokenizer.decode(answer),
        rectangles=np.concatenate([part.rectangles for part in parts]),
        coarse=recorder.coarse,
        positions=recorder.positions,
        levels=recorder.levels,
        sums=recorder.sums,
        peak=recorder.peak,
        prompt=length,
        kept=recorder.kept,
    )


def to_levels(attention: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Rounds attention from 0 to 1 to 256 levels of its square root, so that weak attention is not rounded to none."""
    return np.rint(255 * np.sqrt(attention)).astype(np.uint8)


def answer_tokens(
    record: Record, answer: Sequence[int], tokenizer: Any, family: str, image: ImageTokens
) -> list[Token]:
    """Returns the tokens of an answer, each with its word on the page and the visual tokens of the word."""
    aligned = align_answer(record.id, answer, tokenizer, record.entries, "ordered", family)
    entry_of = dict(zip(aligned.token_index, aligned.entry_index, strict=True))
    text, spans = token_spans(answer, tokenizer)
    index = {int(position): cell for cell, position in enumerate(image.positions)}
    tokens = []
    for number, (start, end) in enumerate(spans):
        word = entry_of.get(number)
        box = record.entries[word].box if word is not None else None
        cells = [] if box is None else [index[int(at)] for at in box_positions(image, box)]
        tokens.append(Token(text[start:end], word, cells))
    return tokens
