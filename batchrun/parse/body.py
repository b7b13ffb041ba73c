"""A response's body and its output items as they should be, in one pass; of odd types made so.

What is of a wrong type counts as absent (PROTOCOL 0.1): hardly any answer has such a field, and
then it is read once more, field by field.
"""

from typing import Any

import msgspec
from msgspec import Raw, Struct

from batchrun.parse.json_text import decode, text

_NULL = Raw(b"null")


class _Incomplete(Struct):
    reason: str | None = None


class Body(Struct):
    """A body as it should be: its fields are checked while they are decoded, in one pass."""

    object: str | None = None
    id: str | None = None
    status: str | None = None
    model: str | None = None
    service_tier: str | None = None
    error: Any = None
    incomplete_details: _Incomplete | None = None
    output: Raw = _NULL
    output_text: str | None = None  # some servers send the SDK's property besides
    usage: Raw = _NULL
    tool_usage: Raw = _NULL


class _OddBody(Struct):
    """The same of any types."""

    object: Any = None
    id: Any = None
    status: Any = None
    model: Any = None
    service_tier: Any = None
    error: Any = None
    incomplete_details: Any = None
    output: Raw = _NULL
    output_text: Any = None
    usage: Raw = _NULL
    tool_usage: Raw = _NULL


class Part(Struct):
    """A piece of a message or of a summary, as it should be."""

    type: str | None = None
    text: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None


class Item(Struct):
    """What an output item says, as it should be."""

    type: str | None = None
    content: list[Part] | str | None = None
    summary: list[Part] | None = None


_body_decoder = msgspec.json.Decoder(Body)
_odd_body_decoder = msgspec.json.Decoder(_OddBody)
_items_decoder = msgspec.json.Decoder(list[Item])
_raw_items_decoder = msgspec.json.Decoder(list[Raw])


def read_body(body: bytes) -> Body:
    """Raises `ValueError` where it is no JSON object."""
    try:
        return _body_decoder.decode(body)
    except msgspec.ValidationError:  # something is of a wrong type: that counts as absent
        odd = _odd_body_decoder.decode(body)
    return Body(
        object=text(odd.object),
        id=text(odd.id),
        status=text(odd.status),
        model=text(odd.model),
        service_tier=text(odd.service_tier),
        error=odd.error,
        incomplete_details=_Incomplete(text(odd.incomplete_details, "reason")),
        output=odd.output,
        output_text=text(odd.output_text),
        usage=odd.usage,
        tool_usage=odd.tool_usage,
    )


def read_items(output: bytes) -> list[Item]:
    """Of a JSON array. Raises `ValueError` where it is none."""
    try:
        return _items_decoder.decode(output)
    except msgspec.ValidationError:  # something is of a wrong type: that counts as absent
        return [_odd_item(raw) for raw in _raw_items_decoder.decode(output)]


def _odd_item(raw: Raw) -> Item:
    odd = decode(bytes(raw))
    if not isinstance(odd, dict):  # it stays in `output`
        return Item()
    said = odd.get("content")
    content = said if isinstance(said, str) else _odd_parts(said)
    return Item(text(odd, "type"), content, _odd_parts(odd.get("summary")))


def _odd_parts(value: object) -> list[Part]:
    return [
        Part(
            type=text(part, "type"),
            text=text(part, "text"),
            refusal=text(part, "refusal"),
            annotations=notes if isinstance(notes := part.get("annotations"), list) else None,
        )
        for part in (value if isinstance(value, list) else ())
        if isinstance(part, dict)
    ]
