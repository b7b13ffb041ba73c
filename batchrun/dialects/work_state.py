"""What a body says of work in the background: its id, and whether it goes on or has ended. No I/O.

A poll may bring half an answer, a page or nothing at all: then it says neither.
"""

import re
from typing import Any

import msgspec
from msgspec import Raw, Struct

from batchrun.dialects.statuses import END_STATUSES, RUNNING, status_of
from batchrun.formats.json_text import decode_as, text

_FIRST_ID = re.compile(rb'"id"\s*:\s*"([^"\\]{1,200})"')
_FIRST_STATUS = re.compile(rb'"status"\s*:\s*"([^"\\]{1,40})"')


class WorkState(Struct, frozen=True):
    """What one body says; neither running nor ended where it says nothing that is understood."""

    id: str | None = None
    is_running: bool = False
    has_ended: bool = False
    is_cancelled: bool = False  # and has ended therefore


class _Fields(Struct):
    id: Any = None
    object: Any = None
    status: Any = None
    output: Raw = Raw(b"null")
    error: Raw = Raw(b"null")


_decoder = msgspec.json.Decoder(_Fields)
_NOTHING = WorkState()


def work_state(body: bytes) -> WorkState:
    """The state of the work that a body is about, whatever the body is."""
    fields = decode_as(body, _decoder)
    return _NOTHING if fields is None else _state(fields)


def begun_state(body: bytes) -> WorkState:
    """The same of the answer to a create call, of which a part may be missing.

    A response with an id, but without output, an error or a status that ends it, goes on.
    """
    fields = decode_as(body, _decoder)
    if fields is None:
        found, said = _FIRST_ID.search(body), _FIRST_STATUS.search(body)
        status = None if said is None else said[1].decode(errors="replace")
        is_running = status_of(status, has_items=False) in RUNNING
        if body.lstrip()[:1] != b"{" or found is None or not is_running:
            return _NOTHING
        return WorkState(found[1].decode(errors="replace"), is_running=True)
    state = _state(fields)
    goes_on = fields.object == "response" and bytes(fields.error) == b"null" and not state.has_ended
    return WorkState(state.id, is_running=True) if goes_on and state.id is not None else state


def _state(fields: _Fields) -> WorkState:
    response_id, output = text(fields.id) or None, bytes(fields.output)
    if response_id is None and fields.object != "response" and output[:1] != b"[":
        return _NOTHING  # `{"status": "error"}` is a word about the poll
    has_items = output[:1] == b"[" and output[1:-1].strip() != b""
    status = status_of(text(fields.status), has_items=has_items)
    return WorkState(
        response_id,
        is_running=status in RUNNING,
        has_ended=status in END_STATUSES or (status is None and has_items),
        is_cancelled=status == "cancelled",
    )
