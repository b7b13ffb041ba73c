"""How many tokens the next answers will need, from the answers of this run so far.

For rates an expectation is enough. For dollars it is a bound, if one can be known (`is_bounded`).
"""

import math
import re
from collections import deque

import msgspec
from msgspec import Struct

from batchrun.limits import tuning
from batchrun.records import Largest

# Parts of an input that are billed by other rules than text, or that the server stores.
_BEYOND_TEXT = (
    b'"input_image"',
    b'"input_file"',
    b'"input_audio"',
    b'"computer_screenshot"',
    b'"item_reference"',
    b'"image_url"',
    b'"file_id"',
)
# A part that is not text, or the beginning of data that the model does not read as text.
_find_part_or_data = re.compile(
    rb'"(?<!\\")(?:(input_(?:image|file|audio)"(?!:))|data:|file_data":"(?!data:)|data":")'
).search
_REFERRING = (b'"tools"', b'"previous_response_id"', b'"conversation"', b'"prompt"')
_BYTES_A_TOKEN = 4  # of text
_SHORT_BYTES = 4_096  # a body of this size holds no image, but may hold the address of one
_OWN_TOOLS = frozenset({"function", "custom"})  # others run at the provider, and read there


class _Tool(Struct):
    type: str = ""


class _Referring(Struct):
    """Fields by which a request may bring in more than its own text."""

    tools: list[_Tool] | None = None
    previous_response_id: msgspec.Raw | None = None
    conversation: msgspec.Raw | None = None
    prompt: msgspec.Raw | None = None


NONE_BEFORE = Largest()
_decode = msgspec.json.Decoder(_Referring).decode


class _Tier(Struct):
    service_tier: str | None = None


_decode_tier = msgspec.json.Decoder(_Tier).decode


class BodySize(Struct, frozen=True):
    """The size of the input that is billed, from the body."""

    text_bytes: int
    is_whole: bool  # everything that the model reads is text in the body; false if unsure


class InputSize(Struct, frozen=True, gc=False):
    """The size of the input in tokens, from the body."""

    text_bytes: int
    parts: int  # images, files and sounds, whose tokens are known only from answers


def input_size(body: bytes) -> InputSize:
    """The size of a body, as compact JSON. Takes some µs; more if it is long and only text."""
    if b'"input_' not in body:
        return InputSize(len(body), 0)
    return _input_size(body)


def measure(body: bytes) -> BodySize:
    """The size of a body, as compact JSON. Takes some µs; once a row, if dollars are capped."""
    if _is_whole(body):
        return BodySize(len(body), is_whole=True)
    return BodySize(_input_size(body).text_bytes, is_whole=False)


def is_bounded(body: bytes, max_output_tokens: int | None) -> bool:
    """Whether the body's bytes and `max_output_tokens` bound the bill of the request."""
    return max_output_tokens is not None and _is_whole(body)


def tier_asked(body: bytes) -> str | None:
    """The service tier that a body names; None if it leaves that to the provider."""
    if b'"service_tier"' not in body:
        return None
    try:
        return _decode_tier(body).service_tier
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None


def _is_whole(body: bytes) -> bool:
    for marker in _BEYOND_TEXT:
        if marker in body:
            return False
    if not any(key in body for key in _REFERRING):
        return True
    try:
        request = _decode(body)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return False
    return (
        request.previous_response_id is None
        and request.conversation is None
        and request.prompt is None
        and all(tool.type in _OWN_TOOLS for tool in request.tools or ())
    )


def _input_size(body: bytes) -> InputSize:
    at, parts, data_bytes = 0, 0, 0
    while (found := _find_part_or_data(body, at)) is not None:
        at = found.end()
        if found[1]:
            parts += 1
            continue
        end = body.find(b'"', at)
        if end < 0:
            break
        data_bytes += end - at
        at = end + 1
    return InputSize(len(body) - data_bytes, parts)


class _Latest:
    """The latest numbers, and a value that most of them do not exceed; constant memory."""

    def __init__(self) -> None:
        self.expected: int | None = None  # 95 % of them do not exceed it; None before the first
        self._latest: deque[int] = deque(maxlen=tuning.LATEST)
        self._left = 0  # so many more until it is calculated again

    def add(self, number: int) -> None:
        self._latest.append(number)
        if self._left:
            self._left -= 1
            return
        by_size = sorted(self._latest)
        self.expected = by_size[math.ceil(tuning.SHARE * len(by_size)) - 1]
        self._left = len(by_size) // tuning.RENEWED


class AnswerSizes:
    """The sizes of the answers of one scope; constant memory."""

    def __init__(self, before: Largest = NONE_BEFORE) -> None:
        """`before`: the largest of earlier commands."""
        self._outputs = _Latest()
        self._parts = _Latest()  # input tokens for each part that is not text
        # As far as answers have shown, a body of at most so many bytes is only text.
        self._short_bytes = _SHORT_BYTES
        self._most_input = before.input_tokens
        self._most_output = before.output_tokens

    def record(self, output_tokens: int | None, input_tokens: int | None = None) -> None:
        """Adds an answer; None for what the server did not count."""
        if input_tokens is not None and input_tokens > self._most_input:
            self._most_input = input_tokens
        if output_tokens is None:
            return
        if output_tokens > self._most_output:
            self._most_output = output_tokens
        elif output_tokens < 0:
            output_tokens = 0
        self._outputs.add(output_tokens)

    def size_of(self, body: bytes) -> InputSize | None:
        """None if the body is short and, as far as answers have shown, only text."""
        return input_size(body) if len(body) > self._short_bytes else None

    def record_input(self, body: bytes, size: InputSize | None, input_tokens: int) -> None:
        """Adds the input tokens of an answered request; size null: it was taken for only text."""
        if size is None:
            if input_tokens <= len(body):  # a token of text has at least a byte
                return
            size = input_size(body)
            if size.parts:
                self._short_bytes = 0
        if size.parts:
            of_parts = max(0, input_tokens - size.text_bytes // _BYTES_A_TOKEN)
            self._parts.add(-(-of_parts // size.parts))

    def expected_input(self, body: bytes, size: InputSize | None) -> int:
        """Expected input tokens: text by its bytes, images and files by the answers so far."""
        if size is None:
            return len(body) // _BYTES_A_TOKEN
        text = size.text_bytes // _BYTES_A_TOKEN
        if not size.parts:
            return text
        of_part = self._parts.expected
        return text + size.parts * (tuning.FIRST_UNSEEN_INPUT if of_part is None else of_part)

    def expected_output(self, max_output_tokens: int | None) -> int:
        """Output tokens that 95 % of the last answers did not exceed, bounded by the request."""
        expected = self._outputs.expected
        if expected is None:
            return tuning.FIRST_OUTPUT if max_output_tokens is None else max(0, max_output_tokens)
        return expected if max_output_tokens is None else min(expected, max(0, max_output_tokens))

    def largest_output(self, max_output_tokens: int | None) -> int:
        """Output tokens to reserve dollars for: the request's bound, or else the most so far."""
        if max_output_tokens is not None:
            return max(0, max_output_tokens)
        return self._most_output or tuning.FIRST_MOST_OUTPUT

    def largest_input(self, size: BodySize) -> int:
        """Input tokens to reserve dollars for: a bound if the model reads only the body."""
        if size.is_whole:
            return size.text_bytes
        return max(size.text_bytes, self._most_input or tuning.FIRST_UNSEEN_INPUT)
