"""Turns images, questions and answers into the input tensors of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image

from sparsemm.errors import AlignError, DataError

if TYPE_CHECKING:
    import torch

TOKEN_TYPES = (
    "mm_token_type_ids",
    "token_type_ids",
)  # of Qwen-VL and Gemma 3: 1 for image tokens, else 0


def build_inputs(processor: Any, images: list[list[Image.Image]], texts: list[str]) -> Any:
    """Builds one user turn per row, its images first, with the processor's own chat template, padded on the left.

    Args:
        processor: a Hugging Face processor with a chat template, or whose tokenizer has one.
        images: RGB images of each row (any number, also none).
        texts: the user's message of each row.

    Returns:
        BatchFeature with input_ids, attention_mask (B, S) int64 and the family's own pixel tensors.

    Raises:
        DataError: if there is no row, not one list of images per text, or no chat template, or if the processor refuses
            an image (Qwen2-VL's does if it is more than 200 times as wide as high).
    """
    if not texts or len(images) != len(texts):
        raise DataError(f"{len(images)} lists of images for {len(texts)} texts", where="build_inputs")
    return encode(processor, images, [chat_prompt(processor, *row) for row in zip(images, texts, strict=True)])


def chat_prompt(processor: Any, images: Sequence[Image.Image], text: str) -> str:
    """Returns one user turn, its images first, as the chat template writes it, up to where the answer begins.

    Args:
        processor: as of `build_inputs`, or a tokenizer with a chat template.
        images: stand before the text; none with a tokenizer.
        text: what the user says.

    Raises:
        DataError: if there is no chat template.
    """
    if not hasattr(processor, "tokenizer"):
        message = [{"role": "user", "content": text}]
        return str(processor.apply_chat_template(message, tokenize=False, add_generation_prompt=True))
    template = None  # the processor's
    if not processor.chat_template:
        if not processor.tokenizer.chat_template:
            hint = "instruction-tuned checkpoints have chat_template.jinja beside config.json; base models have none"
            raise DataError("there is no chat template", where=type(processor).__name__, hint=hint)
        template = processor.tokenizer.get_chat_template()  # where older checkpoints keep it
    content: list[dict[str, Any]] = [{"type": "image"} for _ in images] + [{"type": "text", "text": text}]
    turn = [{"role": "user", "content": content}]
    return str(processor.apply_chat_template(turn, chat_template=template, add_generation_prompt=True))


def encode(processor: Any, images: list[list[Image.Image]], prompts: list[str]) -> Any:
    """Encodes prompts written by a chat template, as `build_inputs` returns them; one list of images per prompt.

    Raises DataError if the processor refuses an image.
    """
    processor.tokenizer.padding_side = "left"
    # Templates write their own special tokens; the tokenizer must not add a second <s>.
    bos = processor.tokenizer.bos_token
    special = not (bos and prompts[0].startswith(bos))
    # One list per row: some families treat images that share a prompt differently.
    nested = [list(row) for row in images] if any(images) else None
    try:
        return processor(text=prompts, images=nested, padding=True, return_tensors="pt", add_special_tokens=special)
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        sizes = ", ".join(f"{image.width}x{image.height}" for row in images for image in row)
        raise DataError(f"the processor refuses images of {sizes}: {error}", where="build_inputs") from error


def move_inputs(inputs: Mapping[str, torch.Tensor], model: Any) -> dict[str, torch.Tensor]:
    """Returns the inputs on the model's device, those with floating-point values in the model's dtype."""
    return {k: v.to(model.device, model.dtype if v.is_floating_point() else v.dtype) for k, v in inputs.items()}


@dataclass(frozen=True)
class AnsweredBatch:
    """A batch of prompts that are followed by their answers."""

    inputs: dict[str, torch.Tensor]  # the model's inputs; row b of input_ids is [padding, prompt, answer]
    first_rows: list[int]  # first_rows[b] + i is the position that predicts answer token i of sample b


def append_answers(inputs: Mapping[str, torch.Tensor], answers: Sequence[Sequence[int]], pad_id: int) -> AnsweredBatch:
    """Appends an answer to every prompt, and pads the rows on the left again.

    Args:
        inputs: prompts as `build_inputs` returns them: input_ids, attention_mask (B, S), pixel tensors.
        answers: token ids of each row's answer; may be empty.
        pad_id: the token to pad with.

    Raises:
        AlignError: if there is not one answer per prompt.
    """
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    if len(answers) != len(ids):
        raise AlignError(f"{len(answers)} answers for {len(ids)} prompts")
    lengths = mask.sum(dim=1).tolist()
    total = max(n + len(a) for n, a in zip(lengths, answers, strict=True))
    types = [name for name in TOKEN_TYPES if name in inputs]
    result = dict(inputs) | {name: inputs[name].new_zeros((len(ids), total)) for name in ("attention_mask", *types)}
    result["input_ids"] = ids.new_full((len(ids), total), pad_id)
    first_rows = []
    for b, answer in enumerate(answers):
        prompt_end = total - len(answer)
        prompt = slice(prompt_end - lengths[b], prompt_end)
        result["input_ids"][b, prompt_end:] = ids.new_tensor(list(answer))
        result["attention_mask"][b, prompt.start :] = 1
        for name in ("input_ids", *types):
            result[name][b, prompt] = inputs[name][b, mask[b].bool()]
        first_rows.append(prompt_end - 1)
    return AnsweredBatch(result, first_rows)


def visual_lengths(processor: Any, sizes: Sequence[tuple[int, int]]) -> list[int]:
    """Returns the prompt tokens of an image of each (width, height) in pixels, for sorting.

    It is 0 if the processor refuses the image, and the number of pixels if it cannot count tokens (SmolVLM's).
    """
    count_tokens = getattr(processor, "_get_num_multimodal_tokens", None)
    if count_tokens is None:
        return [width * height for width, height in sizes]

    def count(sizes: Sequence[tuple[int, int]]) -> list[int]:
        counts = count_tokens(image_sizes=[(height, width) for width, height in sizes])
        return [int(number) for number in counts["num_image_tokens"]]

    try:
        return count(sizes)
    except (ArithmeticError, LookupError, RuntimeError, ValueError):
        return [0] if len(sizes) == 1 else [visual_lengths(processor, [size])[0] for size in sizes]


def by_length(lengths: Sequence[int], batch_size: int, most_padding: float = 1.0) -> list[list[int]]:
    """Groups samples of similar length into batches, the shortest first, so that batches have little padding.

    Args:
        lengths: length of each sample.
        batch_size: most samples of a batch.
        most_padding: largest share of padding in a batch; a sample that would exceed it starts the next batch.

    Returns:
        the indices of the samples in each batch.
    """
    batches: list[list[int]] = []
    real = 0
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):  # stable: equal lengths keep their order
        filled = len(batches[-1]) if batches else batch_size
        padding = (filled + 1) * lengths[i] - (real + lengths[i])
        if filled == batch_size or padding > most_padding * (filled + 1) * lengths[i]:
            batches.append([])
            real = 0
        batches[-1].append(i)
        real += lengths[i]
    return batches
