"""The answer that a stream's events carry. Pure: fed events, it says what they have come to.

Finished means that a terminal event was seen, not that the connection ended (PROTOCOL 0.6).
"""

from typing import Any

import msgspec
from msgspec import Raw, Struct

from batchrun.endpoint.sse import Event
from batchrun.parse.json_text import mended, text

_TERMINAL = {
    "response.completed": "completed",
    "response.incomplete": "incomplete",
    "response.failed": "failed",
    "response.cancelled": "cancelled",
}
_ERRORS = ("error", "response.error")
# Deltas of what the model says or thinks; those of hosted tools' own work are none of it.
_SPOKEN = frozenset(
    f"response.{what}.delta"
    for what in (
        "output_text",
        "refusal",
        "function_call_arguments",
        "custom_tool_call_input",
        "reasoning_text",
        "reasoning_summary_text",
        "reasoning",
    )
)
_NOTHING = Raw(b"")
_ABSENT = (b"", b"null")
_ENDS = frozenset(b'"' + status.encode() + b'"' for status in _TERMINAL.values())


class _Data(Struct):
    type: Any = None
    response: Raw = _NOTHING
    item: Raw = _NOTHING
    output_index: Any = None
    delta: Any = None
    error: Any = None
    code: Any = None
    message: Any = None


class _Id(Struct):
    id: Any = None


_decoder = msgspec.json.Decoder(_Data)
_object_decoder = msgspec.json.Decoder(dict[str, Raw])


class StreamAnswer:
    """What a stream has said so far."""

    def __init__(self) -> None:
        self.has_begun = False  # a first non-empty delta, of text, arguments or reasoning
        self.response_id: str | None = None
        self._items: dict[int, bytes] = {}  # finished output items by their place
        self._final: tuple[str, bytes] | None = None  # status and object of the terminal event
        self._error: bytes | None = None

    @property
    def is_finished(self) -> bool:
        return self._final is not None or self._error is not None

    def take(self, event: Event) -> None:
        """One more event; what cannot be read is passed over."""
        data = _decoded(event.data)
        if data is None:
            return
        # The `type` in the data rules: some servers send no `event:` line (PROTOCOL 0.7).
        kind = text(data.type) or event.name
        if kind in _TERMINAL:
            self._final = (_TERMINAL[kind], bytes(data.response))
        elif kind == "response.output_item.done":
            self._keep(data.output_index, bytes(data.item))
        elif kind in _SPOKEN:
            self.has_begun = self.has_begun or (isinstance(data.delta, str) and data.delta != "")
        elif _is_error(kind, event.name, data):
            self._error = event.data if data.error else _nested(data)
        elif self.response_id is None and bytes(data.response) not in _ABSENT:
            self.response_id = _id_in(bytes(data.response))

    def _keep(self, place: object, item: bytes) -> None:
        if item in _ABSENT:
            return
        if isinstance(place, int):
            self._items[place] = item
        elif item not in self._items.values():  # sent twice
            self._items[len(self._items)] = item

    def body(self) -> bytes | None:
        """The answer as a plain request would have brought it; null while none is complete."""
        if self._final is not None:
            status, response = self._final
            return self._completed(status, response)
        return self._error

    def _completed(self, status: str, response: bytes) -> bytes | None:
        try:
            fields = _object_decoder.decode(b"{}" if response in _ABSENT else response)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return response
        said = bytes(fields.get("error", b"null"))
        if status == "failed" and said == b"null" and self._error is not None:
            return self._error  # the event before said more
        has_output = bytes(fields.get("output", b"[]")) not in (b"[]", b"null")
        has_ended = bytes(fields.get("status", b"")) in _ENDS
        if has_output and has_ended:
            return response
        if not has_output:
            items = b",".join(item for _, item in sorted(self._items.items()))
            fields["output"] = Raw(b"[" + items + b"]")
        if not has_ended:
            fields["status"] = Raw(b'"' + status.encode() + b'"')
        fields.setdefault("object", Raw(b'"response"'))
        return msgspec.json.encode(fields)


def _decoded(data: bytes) -> _Data | None:
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass  # once more, mended; `[DONE]` is no JSON either
    try:
        return _decoder.decode(mended(data))
    except (ValueError, RecursionError):
        return None


def _is_error(kind: str, name: str, data: _Data) -> bool:
    if kind in _ERRORS or name in _ERRORS:
        return True
    return bool(data.error) and bytes(data.response) in _ABSENT


def _nested(data: _Data) -> bytes:
    """A flat error in the shape that plain answers have."""
    said = {"code": data.code, "message": data.message}
    if data.type not in _ERRORS:
        said["type"] = data.type
    return msgspec.json.encode({"error": said})


def _id_in(response: bytes) -> str | None:
    try:
        return text(msgspec.json.decode(response, type=_Id).id)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
