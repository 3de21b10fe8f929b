"""What clients send to the example service: images as cameras make them, and everything that is refused."""

from __future__ import annotations

import pytest
from PIL import Image

from tests.examples.services import READ, RECORDS, form, png, raw, until


def test_a_photograph_on_its_side_is_turned(service):
    side, exif = RECORDS[0].image.transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6  # rotate by 270 degrees to see it
    turned = [png(side), png(side, exif=exif), png(RECORDS[0].image)]
    texts = [service.client.post("/answer", **form(READ, content)).json()["text"] for content in turned]
    assert texts[0] != texts[1] == texts[2]


def test_a_body_that_breaks_off_leaves_nothing(service):
    with raw(service, 5000, b"half"):
        until(lambda: service.state.in_flight == 1)
    until(lambda: service.state.in_flight == 0)


def damaged():
    content = bytearray(png(RECORDS[0].image))
    content[60:] = content[60 : len(content) // 2]
    return bytes(content)


@pytest.mark.parametrize(
    "request_, status, says",
    [
        (form("  \n"), 422, "empty"),
        (form("x" * 101), 413, "longer"),
        (form("What is <|image_pad|>?"), 422, "special token"),
        (form(image=b"not an image"), 415, "none of"),
        (form(image=b""), 415, "none of"),
        (form(image=png(RECORDS[0].image, "GIF")), 415, "none of"),
        (form(image=damaged()), 400, "damaged"),
        (form(image=png(Image.new("L", (1000, 1000)))), 413, "pixels"),
        (form(image=png(Image.new("1", (30_000, 30_000)))), 413, "pixels"),
        (form(image=bytes(200_000)), 413, "larger than 200000 bytes"),
        ({"content": iter([bytes(100_000)] * 3), "headers": {"content-type": form.__name__}}, 415, "multipart"),
        ({"content": iter([b"--x\r\n"] + [bytes(100_000)] * 3)}, 413, "larger"),
        ({"content": b""}, 400, "complete"),
        ({"content": b"--x\r\nContent-Disposition: form-data; name=question\r\n\r\nRead"}, 400, "complete"),
        ({"content": b"--x--\r\n"}, 400, "one file named image"),
        ({"json": {"question": READ}}, 415, "multipart"),
        ({"data": {"question": READ}}, 415, "multipart"),
        ({"data": {"question": READ}, "files": {"picture": b"a"}}, 400, "one file named image"),
        ({"files": [("image", b"a"), ("image", b"b"), ("question", (None, READ))]}, 400, "one file named image"),
        ({"files": [(f"part{i}", b"a") for i in range(9)]}, 413, "parts"),
    ],
)
def test_what_cannot_be_answered_is_refused_with_its_reason(service, request_, status, says, monkeypatch):
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", True)  # as a library may have it
    if "content" in request_ and "headers" not in request_:
        request_ = request_ | {"headers": {"content-type": "multipart/form-data; boundary=x"}}
    for path in ("/answer", "/stream"):
        if not isinstance(request_.get("content", b""), bytes) and path == "/stream":
            continue  # an iterator is used up
        reply = service.client.post(path, **request_)
        assert (reply.status_code, says in reply.json()["detail"]) == (status, True), reply.text
    assert service.client.get("/health").json()["in_flight"] == 0
