"""Images of odd depths, palettes, alphas and inks come out as they look, or are refused: never black or blank."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageChops

from sparsemm.datasets import download
from sparsemm.datasets.images import decode, is_of_one_colour
from sparsemm.datasets.records import read_about
from sparsemm.errors import DataError
from tests.datasets.samples import params, png
from tests.datasets.test_malformed import BOX, FORMATS, good

RAMP = np.linspace(0, 1, 64)  # from black to white


def tiff(data: bytes, width: int, bits: int, photometric: int = 1, more: tuple[tuple[int, int, int, int], ...] = ()):
    """One row of samples, packed: a TIFF written by hand, as Pillow writes no 12 bits."""
    tags = sorted(
        [(256, 3, 1, width), (257, 3, 1, 1), (258, 3, 1, bits), (259, 3, 1, 1), (262, 3, 1, photometric)]
        + [(273, 4, 1, 8), (277, 3, 1, 1), (278, 3, 1, 1), (279, 4, 1, len(data)), *more]
    )
    data += b"\0" * (len(data) % 2)
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    head = b"II*\0" + struct.pack("<I", 8 + len(data))
    return head + data + struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)


def packed(levels: np.ndarray, bits: int) -> bytes:
    """Whole numbers of so many bits one after the other, the highest bit first."""
    text = "".join(f"{int(level):0{bits}b}" for level in levels)
    return int(text, 2).to_bytes(len(text) // 8, "big")


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def ramp(image: Image.Image) -> np.ndarray:
    """The first row's grey, from 0 to 1."""
    assert image.mode == "RGB"
    return np.asarray(image.convert("L"))[0].astype(float) / 255


def levels(bits: int) -> np.ndarray:
    return (RAMP * (2**bits - 1)).astype(np.uint16)


GREYS = {
    "tiff of 1 bit": tiff(packed(RAMP > 0.5, 1), 64, 1),
    "tiff of 2 bits": tiff(packed(levels(2), 2), 64, 2),
    "tiff of 4 bits": tiff(packed(levels(4), 4), 64, 4),
    "tiff of 8 bits": tiff(packed(levels(8), 8), 64, 8),
    "tiff of 12 bits": tiff(packed(levels(12), 12), 64, 12),
    "tiff of 16 bits": tiff(levels(16).tobytes(), 64, 16),
    "tiff of 16 bits, white is zero": tiff((65535 - levels(16)).tobytes(), 64, 16, 0),
    "tiff of 8 bits, white is zero": tiff(packed(255 - levels(8), 8), 64, 8, 0),
    "png of 16 bits": saved(Image.fromarray(levels(16)[None]), "PNG"),
    "jpeg 2000 of 16 bits": saved(Image.fromarray(np.repeat(levels(16)[None], 64, 0)), "JPEG2000", irreversible=False),
    "pgm of 10 bits": b"P5 64 1 1023\n" + levels(10).astype(">u2").tobytes(),
    "pgm of 16 bits": b"P5 64 1 65535\n" + levels(16).astype(">u2").tobytes(),
    "palette": saved(Image.fromarray(levels(8).astype(np.uint8)[None]).convert("RGB").quantize(64), "PNG"),
    "cmyk tiff": saved(Image.fromarray(levels(8).astype(np.uint8)[None]).convert("CMYK"), "TIFF"),
}


@pytest.mark.parametrize("name", GREYS)
def test_shades_are_scaled_by_the_bits_of_the_file(name):
    step = 1 / (2 ** {"1 bit": 1, "2 bits": 2, "4 bits": 4}.get(" ".join(name.split()[2:4]), 6) - 1)
    assert np.abs(ramp(decode(GREYS[name], name)) - RAMP).max() <= step + 0.02


@pytest.mark.parametrize(
    "data",
    [
        saved(Image.fromarray(np.linspace(0, 300, 64, dtype=np.float32)[None]), "TIFF"),
        saved(Image.fromarray(np.arange(64, dtype=np.int32)[None]), "TIFF"),
        tiff(np.arange(-32, 32, dtype=np.int16).tobytes(), 64, 16, more=((339, 3, 1, 2),)),
    ],
    ids=["float", "int32", "signed"],
)
def test_numbers_that_have_no_white_are_refused(data):
    with pytest.raises(DataError, match="no known white"):
        decode(data, "x")


def bmp(alpha: int) -> bytes:
    """32 bits a pixel with masks for all four channels."""
    pixels = np.dstack([np.tile(levels(8).astype(np.uint8), (8, 1))] * 3 + [np.full((8, 64), alpha, np.uint8)])
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 56, 64, 8, 1, 32, 3, pixels.nbytes, 2835, 2835, 0, 0) + masks
    return b"BM" + struct.pack("<IHHI", 14 + 56 + pixels.nbytes, 0, 0, 14 + 56) + header + pixels.tobytes()


def with_alpha(alpha: int, mode: str = "RGBA") -> Image.Image:
    image = Image.fromarray(np.tile(levels(8).astype(np.uint8), (8, 1))).convert(mode)
    image.putalpha(alpha)
    return image


@pytest.mark.parametrize("alpha", [0, 255])
def test_an_alpha_of_zero_everywhere_is_ignored(alpha):
    images = [bmp(alpha), saved(with_alpha(alpha), "PNG"), saved(with_alpha(alpha, "LA"), "PNG")]
    images += [saved(with_alpha(alpha), format) for format in ("TGA", "TIFF")]
    for data in images:
        assert np.abs(ramp(decode(data, "x")) - RAMP).max() <= 0.02


def test_an_alpha_of_some_pixels_counts():
    image = with_alpha(0)
    image.putpixel((0, 0), (0, 0, 0, 255))
    colours = np.asarray(decode(saved(image, "PNG"), "x"))
    assert colours[0, 0].max() == 0 and colours.reshape(-1, 3)[1:].min() == 255


def chunked(depth: int, kind: int, pixels: bytes, transparent: bytes) -> bytes:
    """A PNG of two pixels with a transparent colour."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 2, 1, depth, kind, 0, 0, 0)), (b"tRNS", transparent)]
    chunks += [(b"IDAT", zlib.compress(b"\0" + pixels)), (b"IEND", b"")]
    body = (struct.pack(">I", len(b)) + a + b + struct.pack(">I", zlib.crc32(a + b)) for a, b in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


@pytest.mark.parametrize(("kind", "count"), [(0, 1), (2, 3)], ids=["grey", "colour"])
def test_a_transparent_colour_of_sixteen_bits_hides_no_other(kind, count):
    black, other = struct.pack(f">{count}H", *[0] * count), struct.pack(f">{count}H", *[0x4000] * count)
    image = decode(chunked(16, kind, black + other, other), "x")
    assert image.getpixel((0, 0)) == (0, 0, 0) and image.getpixel((1, 0)) == (255, 255, 255)


def test_a_cmyk_jpeg_is_no_negative():
    light = Image.new("RGB", (16, 16), (250, 240, 230)).convert("CMYK")
    adobe = saved(light, "JPEG", quality=95)
    at = adobe.index(b"\xff\xee")
    plain = saved(ImageChops.invert(light), "JPEG", quality=95)
    assert plain[at : at + 2] == b"\xff\xee"  # Adobe's marker, without which 255 is full ink
    plain = plain[:at] + plain[at + 2 + int.from_bytes(plain[at + 2 : at + 4], "big") :]
    for data in (adobe, plain):
        assert min(decode(data, "x").getpixel((8, 8))) > 220


@pytest.mark.parametrize("turned", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF"])
def test_pixels_are_as_stored_whatever_the_orientation(turned, format):
    stored = Image.fromarray(np.kron([[0, 80, 160], [200, 230, 255]], np.ones((16, 16))).astype(np.uint8))
    exif = Image.Exif()
    exif[274] = turned
    options = {"tiffinfo": {274: turned}} if format == "TIFF" else {"exif": exif}
    image = decode(saved(stored, format, **options), "x")
    assert image.size == stored.size
    assert np.abs(np.asarray(image.convert("L"), int) - np.asarray(stored, int)).max() < 12


def test_a_picture_of_one_colour_is_suspicious(tmp_path, capsys):
    rows = [*good(2), (saved(Image.new("RGB", (60, 40), "navy"), "PNG"), "car", BOX)]
    for name, data in FORMATS["records_jsonl"](rows).items():
        (tmp_path / name).write_bytes(data)
    given = {"source": "folder", "path": ".", "format": "records_jsonl", "licence": "own"}
    download.run(params(**given), "mine", tmp_path)
    (reason,) = read_about(tmp_path / "artifacts" / "datasets" / "mine.parquet")["suspicious"]
    assert "'all-3'" in reason and "single colour" in reason
    assert "mine: 1 suspicious, the first: record 'all-3'" in capsys.readouterr().out
    assert not is_of_one_colour(decode(png(), "x"))
