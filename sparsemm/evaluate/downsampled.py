"""The control of smaller images: the full cache of a prompt whose images were downsampled until it fits the budget."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from PIL import Image

from sparsemm.errors import DataError
from sparsemm.evaluate.evaluator import AnyTask, Evaluator
from sparsemm.evaluate.questions import Question
from sparsemm.evaluate.rows import Arm, Outcome
from sparsemm.evaluate.tasks import Scored
from sparsemm.prompts import build_inputs, visual_lengths

NAME = "downsampled"
STEP = 0.97  # factor between one size that is tried and the next one, of both sides

Size = tuple[int, int]


def scaled(size: Size, factor: float) -> Size:
    """Returns (width, height) in pixels of an image with both sides times `factor`, at least 1."""
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def smaller_images(question: Question, factor: float) -> list[Image.Image]:
    """Returns the images of a question with both sides times `factor`."""
    return [image.resize(scaled(image.size, factor), Image.Resampling.LANCZOS) for image in question.images()]


@dataclass(frozen=True)
class PromptLengths:
    """Counts the tokens of prompts with images of any size, as the processor makes them.

    Sizes that are tried are counted by transformers' arithmetic where a processor has it, which needs no pixels.
    """

    processor: Any
    _counts: dict[tuple[tuple[Size, ...], str], int | None] = field(default_factory=dict)

    def exact(self, sizes: Sequence[Size], text: str) -> int | None:
        """Returns the tokens of a prompt that the processor has made; None if it refuses these images."""
        known = tuple(sizes), text
        if known not in self._counts:
            images = [Image.new("RGB", size, "white") for size in sizes]
            try:
                self._counts[known] = int(build_inputs(self.processor, [images], [text])["input_ids"].shape[1])
            except DataError:
                self._counts[known] = None
        return self._counts[known]

    def _shorter(self, sizes: Sequence[Size], smaller: Sequence[Size]) -> int | None:
        """Returns by how many tokens smaller images shorten a prompt, if that is known without making it."""
        if not hasattr(self.processor, "_get_num_multimodal_tokens"):
            return None
        before, after = visual_lengths(self.processor, sizes), visual_lengths(self.processor, smaller)
        return sum(before) - sum(after) if all(before) and all(after) else None

    def factor(self, question: Question, budget: int) -> float | None:
        """Returns the largest factor of the sides, at most 1, that gives a prompt of at most `budget` tokens.

        Returns:
            the factor, in steps of 3 %, or None if no size does: the text alone may be longer than the budget, and
            processors with a fixed resolution resize every image to the same size.
        """
        sizes, factor = [image.size for image in question.images()], 1.0
        full = self.exact(sizes, question.prompt)
        while True:
            smaller = [scaled(size, factor) for size in sizes]
            fewer = None if full is None else self._shorter(sizes, smaller)
            if fewer is None or full is None or full - fewer <= budget:
                count = self.exact(smaller, question.prompt)
                if count is not None and count <= budget:
                    return factor
            if all(size == (1, 1) for size in smaller):
                return None
            factor *= STEP


@dataclass(frozen=True)
class DownsampledTask:
    """A task whose images are smaller; answers are scored as those of the task itself."""

    task: AnyTask
    questions: list[Question]

    @property
    def metric(self) -> str:
        """Returns the name of a document's value in tables."""
        return self.task.metric

    def score(self, texts: list[str]) -> list[Scored]:
        """Returns the value of every document, from one answer per question."""
        return self.task.score(texts)


def downsampled(task: AnyTask, factors: Sequence[float | None]) -> DownsampledTask:
    """Returns a task with the sides of each question's images times its factor; None leaves them as they are."""
    rows = zip(task.questions, factors, strict=True)
    smaller = [replace(one, images=partial(smaller_images, one, factor or 1.0)) for one, factor in rows]
    return DownsampledTask(task, smaller)


def downsampled_tasks(
    processor: Any, tasks: Mapping[str, AnyTask], budgets: Sequence[int]
) -> dict[tuple[str, int], DownsampledTask]:
    """Returns, by task and budget, the task with each image as large as the budget allows.

    A budget that is too small for any of a task's prompts is left out, with a warning: bytes would not be equal.

    Raises:
        DataError: if that is so for all of them.
    """
    lengths, result = PromptLengths(processor), {}
    for name, task in tasks.items():
        for budget in budgets:
            factors = [lengths.factor(question, budget) for question in task.questions]
            unfit = factors.count(None)
            if unfit:
                what = (
                    "sparsemm: task %s at budget %d has no row %s: %d of %d prompts are longer at any size of the image"
                )
                logging.getLogger(__name__).warning(what, name, budget, NAME, unfit, len(factors))
                continue
            result[name, budget] = downsampled(task, factors)
    if not result:
        what = f"no size of the images gives prompts of {max(budgets)} tokens or fewer"
        hint = "leave evaluate.downsampled out: the processor resizes images to a fixed size, or texts are too long"
        raise DataError(what, where=type(processor).__name__, hint=hint)
    return result


def downsampled_outcomes(evaluator: Evaluator, tasks: Mapping[tuple[str, int], DownsampledTask]) -> dict[Arm, Outcome]:
    """Returns what the full cache answers about the smaller images, an arm for every task and budget."""
    outcomes: dict[Arm, Outcome] = {}
    for (name, budget), task in tasks.items():
        arm = Arm(name, "", NAME, None, budget)
        outcomes |= evaluator.outcomes({name: task}, {arm: evaluator.variant("full", None)})
    return outcomes
