"""What a small checkpoint can do on pages it has never seen, and the card that says so."""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

import torch

from sparsemm.align import cut_at_end
from sparsemm.datasets.records import Record
from sparsemm.datasets.synthetic import PageStyle, draw_record, page_text, questions
from sparsemm.evaluate.metrics import exact_match, word_accuracy
from sparsemm.files import write_json
from sparsemm.models import load_model
from sparsemm.params import ModelParams
from sparsemm.prompts import build_inputs
from sparsemm.training.batches import READ_PROMPT
from sparsemm.training.prose import Prose, held_out_loss

STYLES = {"one column": PageStyle(1, 6, (3, 6)), "two columns": PageStyle(2, 6, (6, 12))}


@torch.inference_mode()
def answers(model: Any, processor: Any, records: list[Record], prompts: list[str], batch_size: int = 64) -> list[str]:
    """Greedy answers, as text, to one prompt per record."""
    said: list[str] = []
    end = {model.generation_config.eos_token_id, processor.tokenizer.pad_token_id}
    for start in range(0, len(records), batch_size):
        batch = slice(start, start + batch_size)
        inputs = build_inputs(processor, [[r.image] for r in records[batch]], prompts[batch]).to(model.device)
        out = model.generate(**inputs, do_sample=False, max_new_tokens=128)[:, inputs["input_ids"].shape[1] :]
        said += [processor.tokenizer.decode(cut_at_end(row, end)) for row in out.tolist()]
    return said


def held_out(model: Any, processor: Any, pages: int = 128) -> dict[str, Any]:
    """Accuracy on `pages` pages of the evaluation split per style: words read, exact answers (one question a page)."""
    result: dict[str, Any] = {"pages_per_style": pages}
    for name, style in STYLES.items():
        records = [draw_record("evaluation", 1, i, style) for i in range(pages)]
        read = answers(model, processor, records, [READ_PROMPT] * pages)
        asked = [random.Random(record.id).choice(questions(record)) for record in records]
        told = answers(model, processor, records, [question.prompt for question in asked])
        words = [word_accuracy(text, page_text(record)) for text, record in zip(read, records, strict=True)]
        exact = [exact_match(text, question.answer) for text, question in zip(told, asked, strict=True)]
        result[name] = {"word_accuracy": round(sum(words) / pages, 4), "exact_match": round(sum(exact) / pages, 4)}
    return result


def write_card(
    folder: Path, family: str, run: dict[str, Any], note: str = "", prose: Prose | None = None
) -> dict[str, Any]:
    """Write card.json beside a checkpoint: architecture, data, how it was trained, held-out accuracy.

    The accuracy is measured on the checkpoint as saved, in fp32; so is the loss on held-out prose, if it was trained
    on prose.
    """
    entry = ModelParams(checkpoint=str(folder), revision=None, family=family, dtype="float32", note=note)
    model, processor = load_model(entry)
    text, vision = model.config.get_text_config(), model.config.vision_config
    card = {
        "name": folder.name,
        "note": note,
        "declared_test_model": bool(note),
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
        "data": "sparsemm.datasets.synthetic, split train: pages drawn on the fly, each seen once",
        "licence": "Apache-2.0",
        "training": run,
        "held_out": held_out(model, processor),
    }
    if prose is not None:
        loss = held_out_loss(model, processor.tokenizer, prose)
        card["prose"] = prose.source | {"held_out_nats_per_character": round(loss, 4)}
    write_json(folder / "card.json", card)
    return card


def main() -> None:
    """Measure a checkpoint again and print its held-out accuracy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pages", type=int, default=128)
    given = parser.parse_args()
    entry = ModelParams(checkpoint=str(given.folder), revision=None, family="llava_next", dtype="float32", note="")
    print(held_out(*load_model(entry), pages=given.pages))


if __name__ == "__main__":
    main()
