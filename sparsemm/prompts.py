"""Images and a question -> the tensors a model takes."""

from __future__ import annotations

from typing import Any

from PIL import Image

from sparsemm.errors import DataError


def build_inputs(processor: Any, images: list[list[Image.Image]], texts: list[str]) -> Any:
    """One user turn per row, its images first, in the processor's own chat template, padded on the left.

    Args:
        processor: a Hugging Face processor with a chat template.
        images: RGB images of each row (any number, none included).
        texts: what the user says in each row.

    Returns:
        BatchFeature with input_ids, attention_mask (B, S) int64 and the family's own pixel tensors.

    Raises:
        DataError: if there is no row, or not one list of images per text.
    """
    if not texts or len(images) != len(texts):
        raise DataError(f"{len(images)} lists of images for {len(texts)} texts", where="build_inputs")
    prompts = []
    for row, text in zip(images, texts, strict=True):
        content: list[dict[str, Any]] = [{"type": "image"} for _ in row] + [{"type": "text", "text": text}]
        message = [{"role": "user", "content": content}]
        prompts.append(processor.apply_chat_template(message, add_generation_prompt=True))
    return encode(processor, images, prompts)


def encode(processor: Any, images: list[list[Image.Image]], prompts: list[str]) -> Any:
    """Prompts that a chat template has written, as `build_inputs` returns them; one list of images per prompt."""
    flat = [image for row in images for image in row]
    processor.tokenizer.padding_side = "left"
    # Templates write their own special tokens; the tokenizer must not add a second <s>.
    bos = processor.tokenizer.bos_token
    special = not (bos and prompts[0].startswith(bos))
    return processor(text=prompts, images=flat or None, padding=True, return_tensors="pt", add_special_tokens=special)
