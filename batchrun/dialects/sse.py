"""Server-sent events out of bytes that may be cut anywhere. No I/O, no clock.

Lines end in LF, CRLF or CR; comments and unknown fields are passed over; several `data:` lines
make one event (WHATWG HTML, section 9.2). Events of any size take linear time.
"""

from msgspec import Struct

_BOM = b"\xef\xbb\xbf"
_FIELDS = (b"retry:", b"event:", b"data:", b"id:", b":")  # what a line begins with


def begins_stream(content: bytes, *, says_stream: bool) -> bool | None:
    """Whether a body that begins so is a stream; None while that is not known.

    `says_stream`: its content type says so, which counts where the bytes are no JSON and no page.
    """
    start = content.lstrip(_BOM + b" \t\r\n")[: len(_FIELDS[0])]
    if not start:
        return None
    if start[:1] in (b"{", b"[", b"<"):
        return False
    if says_stream or start.startswith(_FIELDS):
        return True
    return None if any(field.startswith(start) for field in _FIELDS) else False


def text_outside(content: bytes) -> bytes:
    """The lines that belong to no event: a server's words in plain text, labelled as a stream."""
    lines = (line.strip() for line in content.splitlines())
    return b"\n".join(line for line in lines if line and not line.startswith(_FIELDS))


class Event(Struct, frozen=True):
    """One event: its `event:` line, empty where there is none, and its data, never empty."""

    name: str
    data: bytes


class SseParser:
    """Feed it pieces, get the events that they complete."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []  # of a line that is not whole yet
        self._after_cr = False  # the last line ended in CR: a LF that follows belongs to it
        self._is_first_line = True
        self._name = ""
        self._data: list[bytes] = []

    def feed(self, piece: bytes) -> list[Event]:
        if self._after_cr and piece:
            self._after_cr = False
            piece = piece.removeprefix(b"\n")
        if b"\n" not in piece and b"\r" not in piece:
            self._pieces.append(piece)
            return []
        lines = b"".join((*self._pieces, piece)).splitlines(keepends=True)
        self._pieces = []
        if lines[-1][-1:] not in (b"\n", b"\r"):
            self._pieces.append(lines.pop())
        else:
            self._after_cr = lines[-1][-1:] == b"\r"
        events = []
        for line in lines:
            event = self._line(line.rstrip(b"\r\n"))
            if event is not None:
                events.append(event)
        return events

    def _line(self, line: bytes) -> Event | None:
        if self._is_first_line:
            self._is_first_line = False
            line = line.removeprefix(_BOM)
        if not line:
            return self._dispatch()
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
        elif field == b"event":
            self._name = value.decode(errors="replace")
        return None

    def end(self) -> list[Event]:
        """The event that a stream left without its blank line, as some servers do."""
        last = self._line(b"".join(self._pieces)) if self._pieces else None
        self._pieces = []
        rest = self._dispatch()
        return [event for event in (last, rest) if event is not None]

    def _dispatch(self) -> Event | None:
        name, data = self._name, b"\n".join(self._data)
        self._name, self._data = "", []
        return Event(name, data) if data else None
