"""Decodes images, and fits boxes on them to the record schema."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageChops, UnidentifiedImageError
from PIL.ExifTags import Base
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, SAMPLEFORMAT, TiffImageFile

from sparsemm.datasets.data_errors import data_errors
from sparsemm.datasets.records import Entry, whole_images
from sparsemm.errors import DataError

Box = tuple[float, float, float, float]

SIXTEEN_BITS = ("PNG", "PPM", "JPEG2000")  # formats whose integers of more than 8 bits are grey levels up to 2^16
UPRIGHT_TO_STORED = {  # undoes what Pillow does for the orientation of a TIFF file
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def decode(data: bytes, where: str) -> Image.Image:
    """Decodes an image to RGB; transparent pixels become white, and EXIF rotation is not applied, so that boxes fit.

    An alpha channel that is zero everywhere is ignored if the colours show a picture, because programs that do not
    support alpha write such files. Raises DataError if it is truncated, no image, so large (above 89 million pixels)
    that it looks like an attack, of a depth without a defined white, or a program (EPS).
    """
    try:
        with data_errors(where, "the image cannot be read"), warnings.catch_warnings(), whole_images():
            warnings.simplefilter("ignore")  # about damaged metadata and deprecations
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image: Image.Image = Image.open(io.BytesIO(data))
            if image.format == "EPS":
                raise ValueError("EPS is a program, and would be run")
            orientation = image.getexif().get(Base.Orientation, 1) if image.format == "TIFF" else 1
            image.load()
            image = _on_white(_to_eight_bits(image))
            undo = UPRIGHT_TO_STORED.get(orientation)
            return image if undo is None else image.transpose(undo)
    except DataError as error:
        # Pillow's messages contain an address in memory, or do not say that the image is too large.
        if isinstance(error.__cause__, Image.DecompressionBombWarning | Image.DecompressionBombError):
            raise DataError(f"the image is too large: {error.__cause__}", where=where) from error.__cause__
        if isinstance(error.__cause__, UnidentifiedImageError):
            raise DataError("the image cannot be read: no known format", where=where) from error.__cause__
        raise


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Converts an image to 8 bits per channel, scaled by the bits that the file states.

    Pillow's own conversion turns all but the darkest 256 shades of grey into white, or takes 12 bits for 16. Raises
    ValueError if the values have no defined range.
    """
    transparent = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(transparent, tuple) and max(transparent) > 255:
        image.info["transparency"] = tuple(value >> 8 for value in transparent)  # like the pixels of a PNG with 16 bits
    if image.mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info:
        return ImageChops.invert(image)  # Pillow treats all of them as Adobe's, where 255 is no ink
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    bits, inverted = 16 if image.format in SIXTEEN_BITS else 0, False
    if isinstance(image, TiffImageFile):
        tags = image.tag_v2
        if tags.get(SAMPLEFORMAT, (1,))[0] == 1 and image.mode != "I":
            bits, inverted = tags.get(BITSPERSAMPLE, (0,))[0], tags.get(PHOTOMETRIC_INTERPRETATION) == 0
    if image.mode == "F" or not 8 < bits <= 16:
        raise ValueError(f"pixels of mode {image.mode} have no known white")
    pixels = np.asarray(image).astype(np.int64)
    levels = Image.fromarray((pixels >> (bits - 8)).clip(0, 255).astype(np.uint8))
    if inverted:
        levels = ImageChops.invert(levels)
    if isinstance(transparent, int):
        levels.putalpha(Image.fromarray(np.where(pixels == transparent, 0, 255).astype(np.uint8)))
    return levels


def _on_white(image: Image.Image) -> Image.Image:
    """Converts an image to RGB, blended with white by its alpha."""
    if image.mode not in ("RGBA", "RGBa", "LA", "La", "PA") and "transparency" not in image.info:
        return image.convert("RGB")
    image = image.convert("RGBA")
    opaque = image.convert("RGB")
    if image.getchannel("A").getextrema() == (0, 0) and not is_of_one_colour(opaque):
        return opaque
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def is_of_one_colour(image: Image.Image) -> bool:
    """Returns whether all pixels of an RGB image are equal."""
    return all(low == high for low, high in image.getextrema())  # type: ignore[misc]


def bounds(points: Sequence[Sequence[float]], where: str) -> Box:
    """Returns the smallest upright box (x0, y0, x1, y1) around points (x, y).

    Raises DataError if they are not pairs of finite numbers.
    """
    try:
        xs, ys = [float(x) for x, _ in points], [float(y) for _, y in points]
        if not all(map(math.isfinite, (*xs, *ys))):  # min and max may ignore NaN
            raise ValueError("not finite")
        return min(xs), min(ys), max(xs), max(ys)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{points!r:.80} are not points", where=where) from error


def clip(box: Sequence[float], size: tuple[int, int], where: str) -> Box:
    """Returns the part of a box (x0, y0, x1, y1) that is on an image of (width, height) pixels.

    Raises DataError if it is not four finite numbers, or has no area there.
    """
    try:
        x0, y0, x1, y1 = (float(value) for value in box)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"box {box!r:.80} is not four numbers", where=where) from error
    if not all(map(math.isfinite, (x0, y0, x1, y1))):
        raise DataError(f"box {box!r:.80} is not finite", where=where)
    inside = max(x0, 0.0), max(y0, 0.0), min(x1, float(size[0])), min(y1, float(size[1]))
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        raise DataError(f"box {box!r:.80} is empty or outside the {size[0]}x{size[1]} image", where=where)
    return inside


def reading_order(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """Sorts entries by line, top to bottom and left to right, for sources without an order.

    An entry belongs to a line if its middle is within the height of the line's first entry.
    """
    lines: list[list[Entry]] = []
    for entry in sorted(entries, key=lambda entry: (entry.box[1] + entry.box[3], entry.box[0])):
        middle = (entry.box[1] + entry.box[3]) / 2
        if lines and lines[-1][0].box[1] <= middle <= lines[-1][0].box[3]:
            lines[-1].append(entry)
        else:
            lines.append([entry])
    return tuple(entry for line in lines for entry in sorted(line, key=lambda entry: entry.box[0]))
