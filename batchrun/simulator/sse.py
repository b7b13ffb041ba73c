"""Events as bytes on the wire: lines, comments and cuts as quirks ask for. Pure."""

from collections.abc import Iterator
from random import Random
from typing import Any

from batchrun.simulator.bending import encode
from batchrun.simulator.kinds import Quirk

Item = dict[str, Any]
CONTENT_TYPE = "text/event-stream; charset=utf-8"
DONE = b"data: [DONE]\n\n"
PING = b": PING\n\n"
_MOST_BURSTS = 20
_LEAST_BURST_S = 0.01  # shorter steps are not worth a timer
_LONGEST_CUT = 60


def frames(events: list[Item], quirks: tuple[Quirk, ...], *, is_whole: bool = True) -> list[bytes]:
    """The bytes of each event, in order; what ends a whole stream goes with the last."""
    made = [_frame(event, quirks) for event in events]
    if not quirks:
        return made
    if not is_whole:
        pass  # it ends as the fault has it
    elif Quirk.NO_LAST_BLANK in quirks:
        made[-1] = made[-1][:-1]
    elif Quirk.DONE in quirks:
        made[-1] += DONE
    if Quirk.PINGS in quirks:
        made = [PING + frame for frame in made]
    if Quirk.CRLF in quirks:
        # within JSON a line end is always escaped
        made = [frame.replace(b"\n", b"\r\n") for frame in made]
    return made


def bursts(made: list[bytes], opening: int, latency_s: float) -> Iterator[tuple[float, bytes]]:
    """What is written when, in seconds from the start: the opening at once, the last at the end."""
    rest = made[opening:]
    count = min(len(rest), _MOST_BURSTS, int(latency_s / _LEAST_BURST_S))
    if count < 2:
        yield latency_s, b"".join(made)
        return
    yield 0.0, b"".join(made[:opening])
    for number in range(count):
        first, last = number * len(rest) // count, (number + 1) * len(rest) // count
        yield latency_s * ((number + 1) / count), b"".join(rest[first:last])


def cuts(data: bytes, rng: Random) -> Iterator[bytes]:
    """The bytes in short pieces that end anywhere."""
    at = 0
    while at < len(data):
        size = rng.randint(1, _LONGEST_CUT)
        yield data[at : at + size]
        at += size


def _frame(event: Item, quirks: tuple[Quirk, ...]) -> bytes:
    data = encode(event, quirks)
    mark = b"data:" if Quirk.NO_SPACE in quirks else b"data: "
    if Quirk.SPLIT_DATA in quirks:
        parts = (data[:1], data[1:-1], data[-1:])  # between two tokens a line may end
        lines = b"".join(mark + part + b"\n" for part in parts)
    else:
        lines = mark + data + b"\n"
    if Quirk.NO_EVENT_LINES in quirks:
        return lines + b"\n"
    return b"event: %b\n%b\n" % (event["type"].encode(), lines)
