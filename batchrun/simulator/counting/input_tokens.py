"""Input tokens of a body: text by its bytes, images by their size, files by their pages or text.

An image takes what OpenAI's guide to images and vision says of models that see tiles: 85 tokens,
and 170 for each tile of 512 pixels, after it was made to fit into 2,048 and its shorter side into
768 pixels. What is only referred to counts as one of 1,024 pixels. What pages take is made up.
"""

import re
import struct
from base64 import b64decode
from collections.abc import Iterator
from math import ceil
from typing import Any

BYTES_A_TOKEN = 4  # of text
_AROUND = 3  # tokens of a request besides its text
_MEDIA = (b'"input_image"', b'"input_file"', b'"input_audio"', b'"computer_screenshot"')
_IMAGES = ("input_image", "computer_screenshot")
_LOW, _TILE = 85, 170
_TILE_PIXELS, _MOST_PIXELS, _SHORTER_PIXELS = 512, 2_048, 768
_UNSEEN = 1_024  # pixels of either side
_PAGE = 1_100
_SOUND_BYTES = 1_600  # a token: a tenth of a second, of which each has 16 kB
_HEAD_LETTERS = 350_000  # of base64: the size of a JPEG stands after its colours and thumbnails
_find_pages = re.compile(rb"/Type\s*/Page(?![a-zA-Z])").findall


def input_tokens(fields: dict[str, Any], encoded: bytes) -> int:
    """Of a body, which may be wrong in any way; `encoded`: the same as compact JSON."""
    text_bytes, tokens = len(encoded), _AROUND
    if any(kind in encoded for kind in _MEDIA):
        for part in _parts(fields.get("input")):
            data, taken = _of_part(part)
            text_bytes -= data
            tokens += taken
    return max(text_bytes, 0) // BYTES_A_TOKEN + tokens


def _parts(items: Any) -> Iterator[dict[str, Any]]:
    """What messages and the results of tools consist of."""
    for item in items if isinstance(items, list) else ():
        for name in ("content", "output"):
            parts = item.get(name) if isinstance(item, dict) else None
            for part in parts if isinstance(parts, list) else (parts,):
                if isinstance(part, dict):
                    yield part


def _of_part(part: dict[str, Any]) -> tuple[int, int]:
    """How many bytes of it are no text, and how many tokens they take."""
    kind = part.get("type")
    if kind in _IMAGES:
        head, letters = _content(part.get("image_url"), _HEAD_LETTERS)
        if part.get("detail") == "low":
            return letters, _LOW
        return letters, image_tokens(*(image_size(head) or (_UNSEEN, _UNSEEN)))
    if kind == "input_file":
        content, letters = _content(part.get("file_data"))
        return letters, _file_tokens(content) if content else _PAGE
    if kind == "input_audio":
        sound = part.get("input_audio")
        content, letters = _content(sound.get("data") if isinstance(sound, dict) else None)
        return letters, len(content) // _SOUND_BYTES
    return 0, 0


def _content(data: Any, most: int | None = None) -> tuple[bytes, int]:
    """What a data URL, or base64 alone, holds, of so many letters at most; how many it has."""
    if not isinstance(data, str) or data.startswith(("http:", "https:")):
        return b"", 0
    start = data.find(",") + 1 if data.startswith("data:") else 0
    letters = data[start:] if most is None else data[start : start + most]
    try:
        return b64decode(letters[: len(letters) // 4 * 4]), len(data)
    except ValueError:
        return b"", len(data)


def image_tokens(width: int, height: int) -> int:
    """Of an image of so many pixels."""
    shorter, longer = sorted((max(width, 1), max(height, 1)))
    scale = min(1.0, _MOST_PIXELS / longer, _SHORTER_PIXELS / shorter)
    tiles = [max(1, ceil(round(side * scale) / _TILE_PIXELS)) for side in (shorter, longer)]
    return _LOW + _TILE * tiles[0] * tiles[1]


def _file_tokens(content: bytes) -> int:
    if content.startswith(b"%PDF"):  # pages in compressed objects are not seen
        return _PAGE * max(1, len(_find_pages(content)))
    try:
        content.decode()
    except UnicodeDecodeError:
        return _PAGE
    return ceil(len(content) / BYTES_A_TOKEN)


def image_size(head: bytes) -> tuple[int, int] | None:
    """Width and height that the beginning of an image says; null where it says none."""
    try:
        if head.startswith(b"\x89PNG\r\n\x1a\n"):
            width, height = struct.unpack_from(">II", head, 16)
        elif head.startswith((b"GIF87a", b"GIF89a")):
            width, height = struct.unpack_from("<HH", head, 6)
        elif head.startswith(b"RIFF") and head[8:12] == b"WEBP":
            width, height = _webp_size(head)
        elif head.startswith(b"\xff\xd8"):
            width, height = _jpeg_size(head)
        else:
            return None
    except (struct.error, IndexError):
        return None
    return width, height


def _webp_size(head: bytes) -> tuple[int, int]:
    form = head[12:16]
    if form == b"VP8X":
        low_width, high_width, low_height, high_height = struct.unpack_from("<HBHB", head, 24)
        return (low_width | high_width << 16) + 1, (low_height | high_height << 16) + 1
    if form == b"VP8L":
        (bits,) = struct.unpack_from("<I", head, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", head, 26)
    return width & 0x3FFF, height & 0x3FFF


def _jpeg_size(head: bytes) -> tuple[int, int]:
    """Raises `struct.error`, `IndexError` where the frame's header is not in it."""
    at = 2
    while True:
        marker = head[at + 1]
        # SOF0 to SOF15, without DHT, JPG and DAC.
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", head, at + 5)
            return width, height
        (length,) = struct.unpack_from(">H", head, at + 2)
        at += 2 + length
