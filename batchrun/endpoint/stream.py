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
_NOTHING = Raw(b"")


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
        elif kind in _ERRORS or (data.error and not bytes(data.response)):
            self._error = event.data if data.error else _nested(data)
        elif kind == "response.output_item.done":
            place = data.output_index
            place = place if isinstance(place, int) else len(self._items)
            self._items[place] = bytes(data.item)
        elif kind.endswith(".delta"):
            self.has_begun = self.has_begun or (isinstance(data.delta, str) and data.delta != "")
        elif self.response_id is None and bytes(data.response):
            self.response_id = _id_in(bytes(data.response))

    def body(self) -> bytes | None:
        """The answer as a plain request would have brought it; null while none is complete."""
        if self._final is not None:
            status, response = self._final
            return self._completed(status, response)
        return self._error

    def _completed(self, status: str, response: bytes) -> bytes | None:
        try:
            fields = _object_decoder.decode(response or b"{}")
        except msgspec.DecodeError:
            return response
        said = bytes(fields.get("error", b"null"))
        if status == "failed" and said == b"null" and self._error is not None:
            return self._error  # the event before said more
        has_output = bytes(fields.get("output", b"[]")) not in (b"[]", b"null")
        if has_output and "status" in fields:
            return response
        if not has_output:
            items = b",".join(item for _, item in sorted(self._items.items()))
            fields["output"] = Raw(b"[" + items + b"]")
        fields.setdefault("status", Raw(msgspec.json.encode(status)))
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


def _nested(data: _Data) -> bytes:
    """A flat error in the shape that plain answers have."""
    return msgspec.json.encode({"error": {"code": data.code, "message": data.message}})


def _id_in(response: bytes) -> str | None:
    try:
        return text(msgspec.json.decode(response, type=_Id).id)
    except msgspec.DecodeError:
        return None
