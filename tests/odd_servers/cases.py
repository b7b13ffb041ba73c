"""One row against an odd server: what is sent, what the server says, and what must come of it."""

import copy
import json
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]
MODES = ("plain", "stream", "background")
# What deviations change, in this order: the answer, its events, their bytes, the frame around
# them, and what is said before it or instead of it.
ANSWER, EVENTS, BYTES, FRAME, SEQUENCE = range(5)
MOST_ATTEMPTS = 4  # of a row, in the runs of this folder
SAME_ENDS = 3  # an error with a code that comes back unchanged ends its row


@dataclass
class Wire:
    """One HTTP answer, byte by byte."""

    body: bytes = b""
    status: int = 200
    type: str | None = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    framing: str = "length"  # length, chunked, or close: its connection's end is its own
    more: int = 0  # bytes that Content-Length says too many
    has_end: bool = True  # the last chunk
    cut: int = 0  # size of the pieces in which the body is sent; 0: all at once
    end: str = "keep"  # of the connection: keep, close, reset
    is_silent: bool = False  # nothing is said before the end
    closes_next: bool = False  # the connection dies at the next request on it
    cost: str = "free"  # of an attempt that ends so: free, unknown, or usage: as it is said


@dataclass
class Case:
    """A good exchange that deviations make odd, and what must be understood of it."""

    draw: random.Random
    mode: str
    row: Json  # of the prompt set
    served: Json  # the answer as it is said
    meant: Json  # the answer as it must be understood
    events: list[Json | bytes] = field(default_factory=list)  # stream mode; bytes as they are
    is_named: bool = True  # events have their `event:` line
    line_end: str = "\n"
    wire: Wire = field(default_factory=Wire)  # of the answer
    create: Wire = field(default_factory=Wire)  # background mode
    polls: list[Wire] = field(default_factory=list)  # before the answer
    before: list[Wire] = field(default_factory=list)  # attempts that fail first
    kinds: list[str] = field(default_factory=list)  # their error kinds
    instead: bool = False  # `wire` is no answer, however often the row is asked
    kind: str | None = None  # then: the row's error kind; else what deviations say that it is
    status: str | None = None  # then: the row's status
    posts: int = 1  # how often `wire` is asked for
    says: tuple[str, ...] = ()  # words that the row's error message has
    is_verbatim: bool = True  # the output items are stored as served
    forgets: int = 0  # times that the server forgets background work that it has begun
    failed_poll: Wire | None = None  # what ends the work that was begun first
    piece: Json | None = None  # of an answer, which stands in a row that gets none
    names: list[str] = field(default_factory=list)  # of the deviations

    @property
    def id(self) -> str:
        name: str = self.row["custom_id"]
        return name

    def both(self, **fields: Any) -> None:
        """Fields of the answer, as it is said and as it is meant."""
        self.served |= copy.deepcopy(fields)
        self.meant |= copy.deepcopy(fields)

    def is_unsaid(self, *paths: str) -> None:
        """What is lost with events that are left out."""
        for path in paths:
            if path == "usage":
                self.meant["usage"] = None
            elif path == "citations":
                for item in self.meant["output"]:
                    for part in item.get("content") or ():
                        part.pop("annotations", None)
        self.is_verbatim = False


@dataclass(frozen=True)
class Deviation:
    """One way in which servers depart from the letter."""

    id: str  # the item, and a word
    slot: str  # no two deviations of one slot go together
    layer: int
    apply: Callable[[Case], None]
    modes: tuple[str, ...]
    needs: tuple[str, ...]  # what the answer has
    excludes: tuple[str, ...]  # beginnings of slots, and parts of ids, that make no sense beside it


class Table:
    """Deviations of one layer."""

    def __init__(self, layer: int) -> None:
        self.rows: list[Deviation] = []
        self._layer = layer

    def add(
        self,
        name: str,
        slot: str,
        apply: Callable[[Case], None],
        *,
        modes: tuple[str, ...] = MODES,
        needs: Iterable[str] = (),
        excludes: Iterable[str] = (),
    ) -> None:
        row = Deviation(name, slot, self._layer, apply, modes, tuple(needs), tuple(excludes))
        self.rows.append(row)

    def named(
        self,
        name: str,
        slot: str,
        *,
        modes: tuple[str, ...] = MODES,
        needs: Iterable[str] = (),
        excludes: Iterable[str] = (),
    ) -> Callable[[Callable[[Case], None]], Callable[[Case], None]]:
        """The same as a decorator."""

        def add(apply: Callable[[Case], None]) -> Callable[[Case], None]:
            self.add(name, slot, apply, modes=modes, needs=needs, excludes=excludes)
            return apply

        return add


def to_json(value: Any, draw: random.Random) -> bytes:
    """As servers write it: with or without escapes and spaces."""
    compact = (",", ":") if draw.random() < 0.5 else None
    text = json.dumps(value, ensure_ascii=draw.random() < 0.5, separators=compact)
    return text.encode("utf-8", "surrogatepass")


def go_together(one: Deviation, other: Deviation, mode: str) -> bool:
    """Whether the second makes sense beside the first."""

    def is_out(first: Deviation, second: Deviation) -> bool:
        return any(second.slot.startswith(word) or word in second.id for word in first.excludes)

    return (
        mode in one.modes
        and mode in other.modes
        and one.slot != other.slot
        and not is_out(one, other)
        and not is_out(other, one)
    )
