"""What single heads look at on a page while the model is about to say one of its words."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sparsemm.align import align_answer, greedy_answers
from sparsemm.chase.hits import append_answers
from sparsemm.datasets.records import Record, read_records
from sparsemm.layouts import get_layout
from sparsemm.models import load_model
from sparsemm.params import Params
from sparsemm.prompts import build_inputs
from sparsemm.scores import ScoreTable

MOST_TOKENS = 1024  # a prompt whose whole attention, all layers and heads, still fits in memory


@dataclass(frozen=True)
class Looking:
    """One word about to be said, and where some heads look.

    Attributes:
        record: the page.
        entry: index of the word among the record's entries.
        said: what the model answers to the whole page.
        views: (title, rectangles (N, 4) in pixels, attention (N,)) per head; the attention on each visual token.
    """

    record: Record
    entry: int
    said: str
    views: list[tuple[str, np.ndarray, np.ndarray]]


@torch.inference_mode()
def looking(params: Params, key: str, table: ScoreTable, root: Path = Path("."), heads: int = 3) -> Looking | str:
    """The best `heads` and the worst head of a table, on the first evaluation page; or why there is no picture."""
    entry = params.models[key]
    model, processor = load_model(entry)
    source = root / "artifacts" / "datasets" / f"{params.evaluate.dataset}.parquet"
    (record,) = read_records(source, limit=1)
    prompt = params.chase.prompt
    (answer,) = greedy_answers(model, processor, [record], prompt, params.chase.max_new_tokens)
    aligned = align_answer(record.id, answer, processor.tokenizer, record.entries, "ordered", entry.family)
    if not aligned.token_index:
        return "the model reads none of this page's words"
    middle = aligned.entry_index[len(aligned.entry_index) // 2]
    token = aligned.token_index[aligned.entry_index.index(middle)]
    inputs = build_inputs(processor, [[record.image]], [prompt]).to(model.device)
    forced = append_answers(inputs, [answer], processor.tokenizer.pad_token_id)
    if forced.inputs["input_ids"].shape[1] > MOST_TOKENS:
        return f"prompts of more than {MOST_TOKENS} tokens are not drawn"
    (image,) = get_layout(entry.family).image_tokens(model.config, forced.inputs, 0, [record.image.size])
    model.set_attn_implementation({"text_config": "eager"})
    attentions = model(**forced.inputs, use_cache=False, output_attentions=True).attentions
    row = forced.first_rows[0] + token
    ranked = table.top_heads(table.scores.size)
    views = []
    for title, (layer, head, share) in [
        *((f"#{n + 1}", h) for n, h in enumerate(ranked[:heads])),
        ("last", ranked[-1]),
    ]:
        weights = attentions[layer][0, head, row].float().cpu().numpy()[image.positions]
        views.append((f"{title}: layer {layer}, head {head}\n{share:.1%} of the score", image.rectangles, weights))
    return Looking(record, middle, processor.tokenizer.decode(answer), views)
