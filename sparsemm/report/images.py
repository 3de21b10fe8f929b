"""Pictures inside the page: data URIs, no files beside it."""

from __future__ import annotations

import base64
import io

from PIL import Image

LARGEST = 1000  # pixels of the longer side


def data_uri(image: Image.Image, sharp: int = LARGEST // 2) -> str:
    """A picture as text: PNG where its longer side has at most `sharp` pixels, else JPEG of at most `LARGEST`."""
    buffer = io.BytesIO()
    if max(image.size) <= sharp:
        image.save(buffer, "PNG")
        kind = "png"
    else:
        small = image.copy()
        small.thumbnail((LARGEST, LARGEST))
        small.save(buffer, "JPEG", quality=80)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
