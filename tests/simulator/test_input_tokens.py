"""Images and files of a request count as the API counts them, and never by their bytes."""

import json
import struct
from base64 import b64encode
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.simulator.counting.input_tokens import image_size, image_tokens, input_tokens
from batchrun.simulator.requests import read_body

_EXIF = b"\xff\xe1" + struct.pack(">H", 60_002) + bytes(60_000)
_IMAGES = {
    "png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", 640, 480),
    "gif": b"GIF89a" + struct.pack("<HH", 640, 480),
    "jpeg": b"\xff\xd8" + _EXIF + b"\xff\xc2\0\x11\x08" + struct.pack(">HH", 480, 640),
    "webp": b"RIFF\0\0\0\0WEBPVP8 \0\0\0\0\0\0\0\x9d\x01\x2a" + struct.pack("<HH", 640, 480),
    "lossless": b"RIFF\0\0\0\0WEBPVP8L\0\0\0\0\x2f" + struct.pack("<I", 639 | 479 << 14),
    "extended": b"RIFF\0\0\0\0WEBPVP8X\0\0\0\0\0\0\0\0\x7f\x02\0\xdf\x01\0",
}


def data_url(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{b64encode(content).decode()}"


def counted(*parts: dict[str, Any], **fields: Any) -> int:
    """The tokens of a body with these parts, without those of what is around them."""

    def of(content: Any) -> int:
        body = {"model": "m", "input": [{"role": "user", "content": content}], **fields}
        return read_body(json.dumps(body).encode()).input_tokens

    return of(list(parts)) - of([])


@pytest.mark.parametrize("form", _IMAGES)
def test_the_size_of_an_image_stands_in_its_head(form: str) -> None:
    assert image_size(_IMAGES[form]) == (640, 480)
    for length in range(len(_IMAGES[form])):
        assert image_size(_IMAGES[form][:length]) is None


@pytest.mark.parametrize(
    ("size", "tokens"),
    [
        ((1_024, 1_024), 765),  # this and the next as the guide says
        ((2_048, 4_096), 1_105),
        ((1, 1), 255),
        ((512, 512), 255),
        ((512, 513), 425),
        ((10_000, 4_000), 1_445),
        ((0, 0), 255),
    ],
)
def test_an_image_takes_its_tiles(size: tuple[int, int], tokens: int) -> None:
    assert image_tokens(*size) == image_tokens(*reversed(size)) == tokens


@given(st.integers(0, 2**32), st.integers(0, 2**32))
def test_an_image_of_any_size_takes_from_255_to_1445(width: int, height: int) -> None:
    assert 255 <= image_tokens(width, height) <= 1_445


def test_the_bytes_of_images_and_files_are_no_text() -> None:
    filler = bytes(1_000_000)
    large = {"type": "input_image", "image_url": data_url(_IMAGES["png"] + filler)}
    assert 425 <= counted(large) <= 450
    assert 850 <= counted(large, large) <= 900
    assert 85 <= counted({**large, "detail": "low"}) <= 110
    unknown = {"type": "input_image", "image_url": data_url(filler)}
    assert 765 <= counted(unknown) <= 790
    for link in ({"image_url": "https://example.com/a.png"}, {"file_id": "file-1"}):
        assert 765 <= counted({"type": "input_image", **link}) <= 790
    screen = {"type": "computer_screenshot", "image_url": data_url(_IMAGES["png"] + filler)}
    shown = [{"type": "computer_call_output", "call_id": "1", "output": screen}]
    assert 425 <= input_tokens({"input": shown}, json.dumps(shown).encode()) <= 490
    pages = b"%PDF-1.7 " + b"<< /Type /Pages >> << /Type/Page >> << /Type /Page /A 1 >>" + filler
    document = {"type": "input_file", "filename": "a.pdf"}
    for data in (b64encode(pages).decode(), data_url(pages, "application/pdf")):
        assert 2_200 <= counted({**document, "file_data": data}) <= 2_230
    text = data_url(b"hello " * 1_000, "text/plain")
    assert 1_500 <= counted({**document, "file_data": text}) <= 1_530
    sheet = data_url(b"PK\3\4\xff" + filler)
    assert 1_100 <= counted({**document, "file_data": sheet}) <= 1_130
    sound = {"data": b64encode(filler).decode(), "format": "wav"}
    assert 625 <= counted({"type": "input_audio", "input_audio": sound}) <= 650


def test_text_that_looks_like_a_part_is_text() -> None:
    words = '{"type": "input_image", "image_url": "data:,"}' * 100
    assert counted({"type": "input_text", "text": words}) > len(words) // 4


_ANY = st.recursive(
    st.one_of(st.none(), st.integers(), st.text(), st.sampled_from(["data:,a", "input_image"])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["type", "content", "output", "image_url", "file_data", "input_audio"]),
            inner,
            max_size=4,
        ),
    ),
)


@given(_ANY, st.sampled_from(["input_image", "input_file", "input_audio"]))
def test_whatever_a_body_holds_it_is_counted(value: Any, kind: str) -> None:
    part = {"type": kind, "image_url": value, "file_data": value, "input_audio": {"data": value}}
    fields = {"input": [value, {"content": [part, value]}, {"output": value}]}
    assert read_body(json.dumps(fields).encode()).input_tokens >= 0
