"""Reads one image and one question from a request's body, and limits everything that a client can make large."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from io import BytesIO

from fastapi import HTTPException, Request
from PIL import Image, ImageOps
from starlette.requests import ClientDisconnect
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.formparser import MultiPartParser
from werkzeug.http import parse_options_header

from examples.service.settings import Settings
from sparsemm.datasets.records import whole_images

FORMATS = ("JPEG", "PNG", "WEBP")


async def read_upload(request: Request, settings: Settings, reserved: Collection[str]) -> tuple[Image.Image, str]:
    """Reads the RGB image and the question of a multipart/form-data request with the fields `image` and `question`.

    Args:
        reserved: the tokenizer's special tokens, which a question must not hold, as it could imitate the template.

    Raises:
        HTTPException: 400 malformed, 413 too large, 415 not multipart or no JPEG, PNG or WebP, 422 no usable question.
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    boundary = options.get("boundary", "")
    if kind != "multipart/form-data" or not boundary.isascii() or not 1 <= len(boundary) <= 70:
        raise HTTPException(415, "send multipart/form-data with the fields image and question")
    body = await _read_body(request, settings.max_upload_bytes)
    # In a thread, because decoding an image takes long enough to delay other requests.
    return await asyncio.to_thread(_parse, body, boundary.encode(), settings, reserved)


async def _read_body(request: Request, limit: int) -> bytes:
    too_large = HTTPException(413, f"the request is larger than {limit} bytes", headers={"Connection": "close"})
    stated = request.headers.get("content-length", "0")
    if not stated.isdecimal() or int(stated) > limit:
        raise too_large
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise too_large
    except ClientDisconnect:
        raise HTTPException(400, "the request broke off") from None
    return bytes(body)


def _parse(body: bytes, boundary: bytes, settings: Settings, reserved: Collection[str]) -> tuple[Image.Image, str]:
    # request.form() would write uploads to disk; here everything stays within the limited body.
    parser = MultiPartParser(stream_factory=lambda *_, **__: BytesIO(), max_form_memory_size=2**20, max_form_parts=8)
    try:
        form, files = parser.parse(BytesIO(body), boundary, len(body))
    except RequestEntityTooLarge:
        raise HTTPException(413, "the form has too many or too large parts") from None
    except ValueError:
        raise HTTPException(400, "not a complete multipart form") from None
    if len(files.getlist("image")) != 1 or len(form.getlist("question")) != 1:
        raise HTTPException(400, "send one file named image and one field named question")
    question = _question(form["question"], settings.max_question_characters, reserved)
    return open_image(files["image"].stream.read(), settings.max_image_pixels), question


def _question(text: str, limit: int, reserved: Collection[str]) -> str:
    text = text.strip()
    if not text:
        raise HTTPException(422, "the question is empty")
    if len(text) > limit:
        raise HTTPException(413, f"the question is longer than {limit} characters")
    if any(token in text for token in reserved):
        raise HTTPException(422, "the question holds a special token of the model")
    return text


def open_image(content: bytes, max_pixels: int) -> Image.Image:
    """Decodes an image to RGB.

    Raises:
        HTTPException: 413 if its header states more than `max_pixels`, 415 if no known format, 400 if damaged.
    """
    too_large = HTTPException(413, f"the image has more than {max_pixels} pixels")
    try:
        with whole_images(), Image.open(BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > max_pixels:  # read from the header; no pixel is decoded yet
                raise too_large
            return ImageOps.exif_transpose(image).convert("RGB")  # applies the orientation of a photograph
    except HTTPException:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise too_large from None
    except Image.UnidentifiedImageError:
        raise HTTPException(415, f"the image is none of {', '.join(FORMATS)}") from None
    except Exception as error:  # Pillow's decoders raise many kinds on damaged input
        raise HTTPException(400, f"the image is damaged ({type(error).__name__})") from None
