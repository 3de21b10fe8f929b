"""What single heads look at on a page while the model is about to say one of its words."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sparsemm.align.stage import greedy_answers
from sparsemm.align.words import align_answer
from sparsemm.chase.hits import append_answers
from sparsemm.datasets.records import Record, read_records
from sparsemm.layouts import get_layout
from sparsemm.layouts.tokens import ImageTokens
from sparsemm.models import load_model
from sparsemm.params import ModelParams, Params
from sparsemm.prompts import build_inputs
from sparsemm.report.figures import View
from sparsemm.scores import ScoreTable

MOST_IMAGE_TOKENS = 512  # the attention of all layers and heads at once still fits in memory
MOST_BYTES = 256 * 2**20  # a report should not have to load more weights than this


@dataclass(frozen=True)
class Looking:
    """One word about to be said, and where some heads look.

    Attributes:
        record: the page.
        entry: index of the word among the record's entries.
        said: what the model answers to the whole page.
        views: one per head, titled with its attention on the page as a whole.
    """

    record: Record
    entry: int
    said: str
    views: list[View]


def too_much_to_load(entry: ModelParams) -> str | None:
    """Why a checkpoint is not loaded for a picture, or None if it is a small local one."""
    folder = Path(entry.checkpoint)
    if not folder.is_dir():
        return "only small local checkpoints are loaded for a picture, this one is not a local folder"
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if size > MOST_BYTES:
        return f"its weights are {size / 2**20:.0f} MiB, a picture is drawn up to {MOST_BYTES // 2**20} MiB"
    return None


def _count(image: ImageTokens | None) -> int:
    return len(image.positions) + _count(image.thumbnail) if image is not None else 0


@torch.inference_mode()
def looking(params: Params, key: str, table: ScoreTable, root: Path = Path("."), heads: int = 3) -> Looking | str:
    """The best `heads` and the worst head of a table, on the first evaluation page; or why there is no picture.

    Raises:
        DataError: if the evaluation pages are missing.
        ModelError: if the checkpoint is not the one in params.yaml.
        ScoreTableError: if the table is of another model.
    """
    entry = params.models[key]
    if reason := too_much_to_load(entry):
        return reason
    records = read_records(root / "artifacts" / "datasets" / f"{params.evaluate.dataset}.parquet", limit=1)
    if not records:
        return "the evaluation set has no page"
    record = records[0]
    model, processor = load_model(entry)
    table.check_model(model.config)
    prompt = params.chase.prompt
    inputs = build_inputs(processor, [[record.image]], [prompt]).to(model.device)
    (image,) = get_layout(entry.family).image_tokens(model.config, inputs, 0, [record.image.size])
    if _count(image) > MOST_IMAGE_TOKENS:
        return f"a page makes {_count(image)} visual tokens, a picture is drawn up to {MOST_IMAGE_TOKENS}"
    (answer,) = greedy_answers(model, processor, [record], prompt, params.chase.max_new_tokens)
    aligned = align_answer(record.id, answer, processor.tokenizer, record.entries, "ordered", entry.family)
    if not aligned.token_index:
        return "the model reads none of this page's words"
    middle = aligned.entry_index[len(aligned.entry_index) // 2]
    token = aligned.token_index[aligned.entry_index.index(middle)]
    forced = append_answers(inputs, [answer], processor.tokenizer.pad_token_id)
    (image,) = get_layout(entry.family).image_tokens(model.config, forced.inputs, 0, [record.image.size])
    model.set_attn_implementation("eager")  # vision too: sdpa warns that it has no weights to give
    attentions = model(**forced.inputs, use_cache=False, output_attentions=True).attentions
    row = forced.first_rows[0] + token
    ranked = table.top_heads(table.scores.size)
    chosen = [(f"#{n + 1}", head) for n, head in enumerate(ranked[:heads])] + [("last", ranked[-1])]
    views = []
    for title, (layer, head, share) in chosen:
        attention = attentions[layer][0, head, row].float().cpu().numpy()
        views.append(view(f"{title}: layer {layer}, head {head}\n{share:.1%} of the score", image, attention))
    return Looking(record, middle, processor.tokenizer.decode(answer), views)


def view(title: str, image: ImageTokens, attention: np.ndarray) -> View:
    """A head's attention (S,) over a prompt, cut to the visual tokens; the title says how much of it that is."""
    parts = [image, *([image.thumbnail] if image.thumbnail is not None else [])]
    weights = [attention[part.positions] for part in parts]
    # The whole row sums to 1; what spreads too thinly to be seen still counts here.
    said = "attention: " + ", ".join(
        f"{w.sum():.0%} {name}" for w, name in zip(weights, ("page", "thumbnail"), strict=False)
    )
    coarse = np.concatenate([np.full(len(w), n > 0) for n, w in enumerate(weights)])
    rectangles = np.concatenate([part.rectangles for part in parts])
    return View(f"{title}\n{said}", rectangles, np.concatenate(weights), coarse)
