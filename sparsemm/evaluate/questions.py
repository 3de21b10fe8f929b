"""Questions: their prompts and images, where an answer stops, and which questions run together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from PIL import Image

from sparsemm.errors import DataError


@dataclass(frozen=True)
class Question:
    """One question about some images.

    Attributes:
        prompt: text of the question.
        images: function that decodes the images, RGB; all images of a task do not fit into memory.
        stops: texts at which an answer ends.
        max_new_tokens: largest number of tokens of an answer; None: 8 more than the longest reference has.
        answer: reference answer, if it is known beforehand.
    """

    prompt: str
    images: Callable[[], list[Image.Image]]
    stops: tuple[str, ...] = ()
    max_new_tokens: int | None = None
    answer: str = ""

    def trim(self, text: str) -> str:
        """Returns an answer up to the first stop, without blanks around it."""
        for stop in self.stops:
            text = text.split(stop)[0]
        return text.strip()


def question(request: Any, dataset: Any, max_new_tokens: int) -> Question:
    """Returns the question of a `generate_until` request.

    Args:
        request: lmms-eval's Instance.
        dataset: {split: documents} of its task.
        max_new_tokens: used if the task does not set it.

    Raises:
        DataError: if the task wants sampling, beams, or other things than images.
    """
    prompt, options, doc_to_visual, doc_id, task, split = request.args
    # A temperature alone makes lmms-eval's own models sample, whatever the task file says about do_sample.
    if options.get("do_sample") or (options.get("temperature") or 0) > 0 or (options.get("num_beams") or 1) > 1:
        hint = "answers are greedy; --gen_kwargs do_sample=False,temperature=0,num_beams=1 overrides the task's own"
        raise DataError("sampling or beams are asked for", where=str(task), hint=hint)

    def images() -> list[Image.Image]:
        visuals = doc_to_visual(dataset[split][doc_id]) or []
        other = next((one for one in visuals if not isinstance(one, Image.Image)), None)
        if other is not None:
            what = f"document {doc_id} shows a {type(other).__name__}"
            raise DataError(what, where=str(task), hint="tasks with images are supported")
        return [one.convert("RGB") for one in visuals]

    stops = options.get("until") or ()
    stops = (stops,) if isinstance(stops, str) else tuple(stop for stop in stops if stop)
    return Question(prompt, images, stops, options.get("max_new_tokens") or max_new_tokens)


def batches(questions: Sequence[Question], size: int) -> list[list[int]]:
    """Groups the numbers of the questions, at most `size` together, by answer length, image sizes and prompt length."""

    def key(at: int) -> tuple[Any, ...]:
        sizes = [image.size for image in questions[at].images()]
        return questions[at].max_new_tokens, sizes, len(questions[at].prompt), at

    order = [one[-1] for one in sorted(map(key, range(len(questions))))]
    result = []
    for _, group in groupby(order, lambda at: questions[at].max_new_tokens):
        same = list(group)
        result += [same[start : start + size] for start in range(0, len(same), size)]
    return result
