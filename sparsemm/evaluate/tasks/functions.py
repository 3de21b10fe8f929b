"""The functions that the task files name: image and prompt of a document, and the score of a prediction."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image

from sparsemm.errors import DataError


def word_accuracy(prediction: str, answer: str) -> float:
    """Returns 1 - word error rate, not below 0: (words - edits) / words with Levenshtein edits over words.

    Raises:
        DataError: if the answer has no word.
    """
    words, wanted = prediction.split(), answer.split()
    if not wanted:
        raise DataError("the reference answer is empty", where="word_accuracy")
    row = list(range(len(words) + 1))
    for i, word in enumerate(wanted, start=1):
        above, row[0] = row[0], i
        for j, other in enumerate(words, start=1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (word != other))
    return max(0.0, 1.0 - row[-1] / len(wanted))


def exact_match(prediction: str, answer: str) -> float:
    """Returns 1.0 if prediction and answer are equal without the blanks around them, else 0.0."""
    return float(prediction.strip() == answer.strip())


SCORERS = {"read": word_accuracy, "qa": exact_match}  # task -> function of (prediction, answer)


def visual(doc: dict[str, Any]) -> list[Image.Image]:
    """Returns the image of the page, RGB."""
    image = doc["image"]
    return [Image.open(io.BytesIO(image["bytes"] if isinstance(image, dict) else image)).convert("RGB")]


def text(doc: dict[str, Any]) -> str:
    """Returns the prompt."""
    return str(doc["prompt"])


def score_reading(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Returns the word accuracy of one prediction."""
    return {"word_accuracy": SCORERS["read"](results[0], doc["answer"])}


def score_answer(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Returns the exact match of one prediction."""
    return {"exact_match": SCORERS["qa"](results[0], doc["answer"])}
