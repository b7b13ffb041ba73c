"""What a stream has said of each output item, for ends that say less than the stream did. No I/O.

Texts are said in deltas, in `.done` events, in finished parts and in finished items, and servers
leave out any of them. They are gathered here, and looked at once, when the stream has ended.
"""

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from msgspec import Raw, Struct

from batchrun.dialects.statuses import RUNNING, status_of
from batchrun.formats.json_text import count, decode, repaired, text

_NULL = Raw(b"null")
_REPLACED = "\ufffd"


class TextKind(Struct, frozen=True):
    """One kind of text, and where an output item has it."""

    item: str  # type of the item
    part: str = ""  # type of the part that holds it; empty: it is a field of the item
    field: str = "text"  # its name in the part or item, and in `.done` events
    list: str = ""  # the field with the item's parts


_TEXT = TextKind("message", "output_text", list="content")
_REASONING = TextKind("reasoning", "reasoning_text", list="content")
_SUMMARY = TextKind("reasoning", "summary_text", list="summary")
_KINDS = {
    "output_text": _TEXT,
    "refusal": TextKind("message", "refusal", "refusal", "content"),
    "function_call_arguments": TextKind("function_call", field="arguments"),
    "custom_tool_call_input": TextKind("custom_tool_call", field="input"),
    "reasoning_text": _REASONING,
    "reasoning": _REASONING,
    "reasoning_summary_text": _SUMMARY,
}
_OF_PART = {kind.part: kind for kind in _KINDS.values() if kind.part} | {"text": _TEXT}
_OWN_CALLS = ("function_call", "custom_tool_call")
# Calls after which the model goes on: none of them is the end of an answer.
_HOSTED = ("web_search_call", "file_search_call", "code_interpreter_call", "mcp_call")

DELTAS = {f"response.{name}.delta": kind for name, kind in _KINDS.items()}
DONE = {f"response.{name}.done": kind for name, kind in _KINDS.items()}
PART_ADDED = ("response.content_part.added", "response.reasoning_summary_part.added")
PART_DONE = ("response.content_part.done", "response.reasoning_summary_part.done")
ITEM_ADDED, ITEM_DONE = "response.output_item.added", "response.output_item.done"


class EventData(Struct):
    """The fields of an event; each may be missing, or of any type."""

    type: Any = None
    response: Raw = _NULL
    item: Raw = _NULL
    output_index: Any = None
    content_index: Any = None
    summary_index: Any = None
    item_id: Any = None
    sequence_number: Any = None
    delta: Any = None
    text: Any = None
    refusal: Any = None
    arguments: Any = None
    input: Any = None
    name: Any = None  # of a function whose arguments are done
    part: Any = None
    usage: Raw = _NULL
    error: Any = None
    code: Any = None
    message: Any = None


class _Text(Struct):
    """One text of an item."""

    kind: TextKind
    place: int  # among the item's parts
    deltas: list[str] = []
    whole: str = ""  # the longest that a `.done` event said
    is_done: bool = False
    part: dict[str, Any] | None = None  # as it was finished, with its annotations

    def say_whole(self, said: str) -> None:
        self.is_done = True
        self.whole = max(self.whole, said, key=len)

    def said(self, finished: str) -> str:
        """The text; `finished`: as the finished item has it."""
        whole = max(self.whole, finished, key=len)
        deltas = "".join(self.deltas)
        more = deltas[len(whole) :] if deltas.startswith(whole) else ""
        # Some servers send all of the text once more as the last delta.
        return deltas if more and not (whole and whole.startswith(more)) else whole or deltas


class _Item(Struct, eq=False):
    """One output item."""

    type: str
    index: int | None
    id: str | None
    raw: bytes = b""  # as it was added or, later, finished
    is_finished: bool = False
    name: str | None = None
    texts: list[_Text] = []

    @property
    def is_whole(self) -> bool:
        return self.is_finished or (bool(self.texts) and all(one.is_done for one in self.texts))

    def is_said(self, said: str) -> bool:
        """Whether it has been said already that this is one of its texts."""
        return any(one.is_done and one.whole == said for one in self.texts)


class _Head(Struct):
    type: Any = None
    id: Any = None


class _Shown(Struct):
    """An item as an event shows it: the last one, or its own."""

    type: Any = None
    id: Any = None
    call_id: Any = None
    content: Any = None
    summary: Any = None
    arguments: Any = None
    input: Any = None

    def text(self, kind: TextKind, place: int) -> str:
        """One of its texts, empty where there is none."""
        if not kind.list:
            return text(getattr(self, kind.field)) or ""
        parts = getattr(self, kind.list)
        if isinstance(parts, str):
            return parts if place == 0 and kind.field == "text" else ""
        return text(_part(parts, kind, place), kind.field) or ""

    def places(self, kind: TextKind) -> list[int]:
        """Where it has parts of this kind."""
        parts = getattr(self, kind.list) if kind.list else None
        count = len(parts) if isinstance(parts, list) else 0
        return [place for place in range(count) if _part(parts, kind, place) is not None]

    def texts(self) -> Iterator[tuple[TextKind, int, str]]:
        for kind in dict.fromkeys(_KINDS.values()):
            parts = getattr(self, kind.list) if kind.list else None
            for place in range(len(parts) if isinstance(parts, list) else 1):
                if kind.item == self.type and (said := self.text(kind, place)):
                    yield kind, place, said


def _part(parts: object, kind: TextKind, place: int) -> object:
    """The part in this place, where it is one of this kind."""
    part = parts[place] if isinstance(parts, list) and place < len(parts) else None
    return part if _OF_PART.get(text(part, "type") or "") is kind else None


_NOT_SHOWN = _Shown()
_decode_head = msgspec.json.Decoder(_Head).decode
_decode_shown = msgspec.json.Decoder(_Shown).decode
_decode_raws = msgspec.json.Decoder(list[Raw]).decode


def _shown(raw: bytes) -> _Shown:
    for mend in (bytes, repaired):
        try:
            return _decode_shown(mend(raw))
        except (ValueError, RecursionError):
            continue
    return _NOT_SHOWN


class _Missing(Struct):
    """A text that an item lacks, or of which it has only a part."""

    kind: TextKind
    place: int
    said: str
    part: dict[str, Any] | None  # as it was finished


class StreamItems:
    """The output items of one stream, as far as its events have said them."""

    def __init__(self) -> None:
        self._items: list[_Item] = []
        self._item: _Item | None = None  # that the last event was about
        self._under_way: tuple[object, ...] = ()  # what tells the text of the last delta
        self._deltas: list[str] = []  # of that text
        self._is_part_awaited = False  # one was begun that nothing has been said of

    @property
    def has_said(self) -> bool:
        """Whether anything of an answer has arrived."""
        return any(item.is_finished or item.texts for item in self._items)

    @property
    def is_whole(self) -> bool:
        """Whether all items are finished, and the last one can be the end of an answer."""
        items = self._in_order()
        if not items or self._is_part_awaited or not all(item.is_whole for item in items):
            return False
        last = items[-1].type
        return last == "message" or (last.endswith("_call") and last not in _HOSTED)

    def add_delta(self, kind: TextKind, data: EventData) -> None:
        delta = data.delta
        if not isinstance(delta, str) or not delta:
            return
        place = (kind, data.output_index, data.content_index, data.summary_index, data.item_id)
        if place != self._under_way:
            deltas = self._text(kind, data, None).deltas
            self._under_way, self._deltas = place, deltas
        self._deltas.append(delta)

    def begin_part(self) -> None:
        """A part was added, whose text is still to come."""
        self._is_part_awaited = True

    def add_done(self, kind: TextKind, data: EventData) -> None:
        self._is_part_awaited = False
        said = getattr(data, kind.field)
        if isinstance(said, str):
            self._text(kind, data, said).say_whole(said)
            if self._item is not None:
                self._item.name = text(data.name) or self._item.name

    def add_part(self, data: EventData) -> None:
        self._is_part_awaited = False
        part = data.part
        kind = _OF_PART.get(text(part, "type") or "")
        said = None if kind is None else text(part, kind.field)
        if kind is not None and said is not None:
            one = self._text(kind, data, said)
            one.say_whole(said)
            one.part = part

    def add_item(self, data: EventData, *, is_finished: bool) -> None:
        raw = bytes(data.item)
        try:
            head = _decode_head(raw)
        except (ValueError, RecursionError):
            return  # null, or no object
        self._under_way = ()
        self._is_part_awaited = self._is_part_awaited and not is_finished
        kind, index, item_id = text(head.type) or "", count(data.output_index), text(head.id)
        if index is None and any(item.raw == raw for item in self._items):
            return  # sent twice
        item = self._find(kind, index, item_id)
        if item is None:
            item = self._open(kind, index, item_id, lambda one: is_finished and not one.is_finished)
        elif item.is_finished or not is_finished:
            # Some servers give every item the same index.
            is_other = None not in (item_id, item.id) and item_id != item.id
            item = None if is_other else item
        self._item = item = item or self._begin(kind, index, item_id)
        if is_finished or not item.is_finished:
            item.raw, item.is_finished = raw, is_finished
            item.type, item.id = kind or item.type, item_id or item.id

    def _text(self, kind: TextKind, data: EventData, said: str | None) -> _Text:
        """The text that an event is about; `said`: all of it, where the event has that."""
        self._under_way = ()
        index, item_id = count(data.output_index), text(data.item_id)
        item = self._find(kind.item, index, item_id)
        if item is None:
            item = self._open(
                kind.item,
                index,
                item_id,
                lambda one: not one.is_whole or (said is not None and one.is_said(said)),
            )
        self._item = item = item or self._begin(kind.item, index, item_id)
        item.type = item.type or kind.item
        place = count(data.summary_index if kind is _SUMMARY else data.content_index)
        if not kind.list:
            place = 0
        for one in reversed(item.texts):
            if one.kind is kind and (one.place == place or place is None):
                if place is None and one.is_done and said != one.whole:
                    break  # this one follows it
                return one
        new = _Text(kind, len(item.texts) if place is None else max(0, place))
        item.texts.append(new)
        return new

    def _begin(self, kind: str, index: int | None, item_id: str | None) -> _Item:
        item = _Item(kind, index, item_id)
        self._items.append(item)
        return item

    def _find(self, kind: str, index: int | None, item_id: str | None) -> _Item | None:
        """The item of this type with this index, else with this id."""
        by_index = by_id = None
        for item in reversed(self._items):
            if kind and item.type not in (kind, ""):
                continue
            if index is not None and item.index == index:
                by_index = by_index or item
            is_elsewhere = None not in (index, item.index) and index != item.index
            if item_id is not None and item.id == item_id and not is_elsewhere:
                by_id = by_id or item
        # Of several with one index the id tells. An id that no item has was made up for the event.
        return by_id or by_index

    def _open(
        self,
        kind: str,
        index: int | None,
        item_id: str | None,
        is_open: Callable[[_Item], bool],
    ) -> _Item | None:
        """The last open item of this type of which nothing says that it is another one."""
        for item in reversed(self._items):
            if kind and item.type not in (kind, ""):
                continue
            has_other_index = index is not None and item.index is not None
            has_other_id = item_id is not None and item.id is not None
            if not has_other_index and not has_other_id and is_open(item):
                item.index = index if item.index is None else item.index
                item.id = item_id if item.id is None else item.id
                return item
        return None

    def _in_order(self) -> list[_Item]:
        places = {id(item): place for place, item in enumerate(self._items)}
        return sorted(
            self._items, key=lambda one: places[id(one)] if one.index is None else one.index
        )

    def output(self, final: bytes, status: str) -> bytes | None:
        """The output items as JSON: those of the last event, with what was said beyond them.

        None where `final`, the output in the last event, lacks nothing, or where that cannot be
        told. `status`: of items that are put together here.
        """
        try:
            return self._output(final, status)
        except (ValueError, RecursionError):
            return None

    def _output(self, final: bytes, status: str) -> bytes | None:
        is_over = status == "completed"  # then a call without a word has no arguments
        items = [
            item
            for item in self._in_order()
            if item.is_finished or item.texts or (is_over and item.type in _OWN_CALLS)
        ]
        raws = [bytes(raw) for raw in _decode_raws(final)] if final[:1] == b"[" else []
        if not raws:
            written = [_filled(item, status) for item in items]
        else:
            as_said = set(raws)
            if all(item.is_finished and item.raw in as_said for item in items):
                return None  # two events agree
            written = _completed(items, raws, status)
        return None if written == raws else b"[%b]" % b",".join(written)


def _filled(item: _Item, status: str) -> bytes:
    """The item as it was finished or, where that lacks something, put together."""
    missing = _missing(item, _NOT_SHOWN, _shown(item.raw))
    is_enough = item.is_finished and not missing
    return item.raw if is_enough else _rendered(item, item.raw, missing, status)


def _completed(items: list[_Item], raws: list[bytes], status: str) -> list[bytes]:
    """The items of the last event, filled in from what was said of them, and those it lacks."""
    shown = [_shown(raw) for raw in raws]
    own = [_shown(item.raw) if item.raw else _NOT_SHOWN for item in items]
    claims = _claims(items, own, shown)
    written = {(place, 0): raw for place, raw in enumerate(raws)}
    before = -1 if claims else len(raws) - 1  # place of the item before, in the last event
    for at, item in enumerate(items):
        place = claims.get(at)
        missing = _missing(item, own[at], _NOT_SHOWN if place is None else shown[place])
        if place is not None:
            before = place
            if missing:
                written[place, 0] = _rendered(item, raws[place], missing, status)
        elif not all(_is_within(one, shown) for one in missing) or (
            item.is_finished and item.type not in ("message", "reasoning")
        ):
            written[before, at + 1] = _filled(item, status)
    return [raw for _, raw in sorted(written.items())]


def _claims(items: list[_Item], own: list[_Shown], shown: list[_Shown]) -> dict[int, int]:
    """Which item of the last event is which of the stream: by id, text, index, and order."""

    def has_id(at: int, place: int) -> bool:
        one, ids = shown[place], (items[at].id, own[at].call_id)
        return (one.id is not None and one.id == ids[0]) or (
            one.call_id is not None and one.call_id == ids[1]
        )

    def has_text(at: int, place: int) -> bool:
        return bool(said[at]) and said[at] <= {
            (kind.part, text.strip()) for kind, _, text in shown[place].texts()
        }

    def has_index(at: int, place: int) -> bool:
        return items[at].index == place

    said = [
        {(one.kind.part, one.said.strip()) for one in _missing(item, its, _NOT_SHOWN)}
        for item, its in zip(items, own, strict=True)
    ]
    claims: dict[int, int] = {}
    free = list(range(len(shown)))
    for is_same in (has_id, has_text, has_index, lambda _at, _place: True):
        for at, item in enumerate(items):
            alike = (place for place in free if shown[place].type == item.type)
            place = None if at in claims else next((p for p in alike if is_same(at, p)), None)
            if place is not None:
                claims[at] = place
                free.remove(place)
    return claims


def _missing(item: _Item, own: _Shown, final: _Shown) -> list[_Missing]:
    """The texts of which `final` has less than was said; `own`: the item as it was finished."""
    texts = list(item.texts)
    for kind, place, said in own.texts():
        if not any(one.kind is kind and (one.place == place or one.whole == said) for one in texts):
            texts.append(_Text(kind, place, whole=said))
    texts.sort(key=lambda one: one.place)
    missing = []
    for one in texts:
        kind, place = one.kind, one.place
        finished = own.text(kind, place)
        if (in_events := one.said("")) in (own.text(kind, other) for other in own.places(kind)):
            finished = in_events  # in the finished item it has another place
        places = final.places(kind)
        known = [other.place for other in texts if other.kind is kind]
        if len(known) == len(places):  # some servers count parts otherwise in their events
            place = places[known.index(place)]
        elif place not in places:
            place = next((free for free in places if free not in known), place)
        shown = final.text(kind, place).strip()
        if shown and shown in (finished.strip(), one.whole.strip()):
            continue  # two events agree
        said = one.said(finished)
        others = (other.strip() for other_kind, _, other in final.texts() if other_kind is kind)
        # A surrogate pair that was cut into two deltas is two characters that are none.
        length = len(said.replace(_REPLACED, "").strip())
        if length > len(shown) and said.strip() not in others:
            missing.append(_Missing(kind, place, said, one.part))
    return missing


def _is_within(missing: _Missing, shown: list[_Shown]) -> bool:
    """Whether a text is part of another item's, as where a server joins messages."""
    kind, said = missing.kind, missing.said.strip()
    return bool(kind.list) and any(
        other is kind and said in text for item in shown for other, _, text in item.texts()
    )


def _rendered(item: _Item, raw: bytes, missing: list[_Missing], status: str) -> bytes:
    """An item as JSON, with what it lacks; `raw`: what there is of it."""
    fields = decode(raw) if raw else {}
    fields["type"] = item.type
    if item.type == "message":
        fields.setdefault("role", "assistant")
    for name, value in (("id", item.id), ("name", item.name)):
        if value is not None:
            fields.setdefault(name, value)
    if status_of(text(fields, "status"), has_items=False) in (None, *RUNNING):
        fields["status"] = status
    for one in missing:
        kind, place = one.kind, one.place
        if not kind.list:
            fields[kind.field] = one.said
            continue
        parts = fields.get(kind.list)
        parts = list(parts) if isinstance(parts, list) else []
        part = _part(parts, kind, place)
        if isinstance(part, dict):
            parts[place] = {**part, kind.field: one.said}
        else:
            new = {"type": kind.part, **(one.part or {}), kind.field: one.said}
            parts.insert(place, new | ({} if kind is not _TEXT else {"annotations": []} | new))
        fields[kind.list] = parts
    return msgspec.json.encode(fields)
