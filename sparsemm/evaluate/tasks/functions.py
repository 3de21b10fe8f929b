"""What the task files refer to: image and prompt of a document, and how a prediction is scored."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image

from sparsemm.evaluate.metrics import exact_match, word_accuracy

SCORERS = {"read": word_accuracy, "qa": exact_match}  # (prediction, answer) -> value, of each task


def visual(doc: dict[str, Any]) -> list[Image.Image]:
    """The page, RGB."""
    image = doc["image"]
    return [Image.open(io.BytesIO(image["bytes"] if isinstance(image, dict) else image)).convert("RGB")]


def text(doc: dict[str, Any]) -> str:
    """What is asked."""
    return str(doc["prompt"])


def score_reading(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Word accuracy of one prediction."""
    return {"word_accuracy": SCORERS["read"](results[0], doc["answer"])}


def score_answer(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Exact match of one prediction."""
    return {"exact_match": SCORERS["qa"](results[0], doc["answer"])}
