"""Images and a question -> the tensors a model takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from sparsemm.errors import DataError


def build_inputs(processor: Any, images: list[list[Image.Image]], texts: list[str]) -> Any:
    """One user turn per row, its images first, in the processor's own chat template, padded on the left.

    Args:
        processor: a Hugging Face processor with a chat template, or whose tokenizer has one.
        images: RGB images of each row (any number, none included).
        texts: what the user says in each row.

    Returns:
        BatchFeature with input_ids, attention_mask (B, S) int64 and the family's own pixel tensors.

    Raises:
        DataError: if there is no row, not one list of images per text, no chat template, or the processor refuses
            (Qwen2-VL's does, for one, where an image is more than 200 times as wide as high).
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
    """Prompts that a chat template has written, as `build_inputs` returns them; one list of images per prompt.

    Raises:
        DataError: if the processor refuses.
    """
    processor.tokenizer.padding_side = "left"
    # Templates write their own special tokens; the tokenizer must not add a second <s>.
    bos = processor.tokenizer.bos_token
    special = not (bos and prompts[0].startswith(bos))
    # One list per row: some families treat images that share a prompt differently.
    given = [list(row) for row in images] if any(images) else None
    try:
        return processor(text=prompts, images=given, padding=True, return_tensors="pt", add_special_tokens=special)
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        sizes = ", ".join(f"{image.width}x{image.height}" for row in images for image in row)
        raise DataError(f"the processor refuses images of {sizes}: {error}", where="build_inputs") from error


def visual_lengths(processor: Any, sizes: Sequence[tuple[int, int]]) -> list[int]:
    """Tokens that an image of each (width, height) in pixels takes up in a prompt, to sort by.

    0 if the processor refuses the image; its pixels if it cannot count (SmolVLM's).
    """
    counted = getattr(processor, "_get_num_multimodal_tokens", None)
    if counted is None:
        return [width * height for width, height in sizes]

    def count(some: Sequence[tuple[int, int]]) -> list[int]:
        found = counted(image_sizes=[(height, width) for width, height in some])
        return [int(number) for number in found["num_image_tokens"]]

    try:
        return count(sizes)
    except (ArithmeticError, LookupError, RuntimeError, ValueError):
        return [0] if len(sizes) == 1 else [number for one in sizes for number in visual_lengths(processor, [one])]


def by_length(lengths: Sequence[int], batch_size: int, most_padding: float = 1.0) -> list[list[int]]:
    """Indices of samples in batches of like length, the shortest first: little of a batch is padding then.

    Args:
        batch_size: samples of a batch, at most.
        most_padding: share of a batch's positions that may be padding; a sample that would make it more begins the
            next batch.
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
