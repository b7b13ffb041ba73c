"""What has changed in a request since its row was stored, field by field, in words. No I/O."""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from batchrun.formats.amounts import plural
from batchrun.formats.json_text import decode, shown, value_of
from batchrun.formats.printable import one_line
from batchrun.records import BadRow, JsonObject, Request

_FIELDS = 5  # of one row
_VALUE = 60  # characters of a value
_BEFORE = 15  # of them, those before the place where two texts part
_ABSENT: Any = object()
_JOB_KEYS = ("request", "input.id", "input.send", "input.format")  # what a request is made by


def request_changes(before: str, now: Request | BadRow) -> list[str]:
    """`request.model: old -> new` for the first fields that differ of a stored request."""
    if isinstance(now, BadRow):
        return [f"it cannot be sent any more: {now.message}"]
    return _first(_changes("request", value_of(before), decode(now.body)))


def setting_changes(before: JsonObject, now: JsonObject) -> list[str]:
    """The same of the settings of two jobs that requests are made by."""
    found: list[str] = []
    for key in _JOB_KEYS:
        found += _changes(key, _at(before, key), _at(now, key))
    return _first(iter(found))


def _at(tree: Any, dotted: str) -> Any:
    for name in dotted.split("."):
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    return tree


def _first(changes: Iterator[str]) -> list[str]:
    found = list(islice(changes, _FIELDS))
    more = sum(1 for _ in changes)
    return [*found, *([f"and {more:,} more"] if more else [])]


def _changes(path: str, before: Any, now: Any) -> Iterator[str]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for name in dict.fromkeys((*before, *now)):
            inner = f"{path}.{one_line(name)}"
            yield from _changes(inner, before.get(name, _ABSENT), now.get(name, _ABSENT))
    elif isinstance(before, list | tuple) and isinstance(now, list | tuple):
        for at, (one, other) in enumerate(zip(before, now, strict=False)):
            yield from _changes(f"{path}[{at}]", one, other)
        if len(before) != len(now):
            yield f"{path}: {plural(len(before), 'item')} -> {plural(len(now), 'item')}"
    elif type(before) is not type(now) or before != now:
        yield f"{path}: {' -> '.join(_both(before, now))}"


def _both(before: Any, now: Any) -> tuple[str, str]:
    if not (isinstance(before, str) and isinstance(now, str)):
        return _in_words(before), _in_words(now)
    pairs = enumerate(zip(before, now, strict=False))
    parted = next((at for at, (one, other) in pairs if one != other), min(len(before), len(now)))
    start = max(0, parted - _BEFORE) if max(len(before), len(now)) > _VALUE else 0
    return _piece(before, start), _piece(now, start)


def _piece(text: str, start: int) -> str:
    """Of a text, from there on."""
    end = start + _VALUE
    piece = one_line(text[start:end])
    if not piece.strip():
        piece = f'"{piece}"'
    return f"{'…' if start else ''}{piece}{'…' if end < len(text) else ''}"


def _in_words(value: Any) -> str:
    if value is _ABSENT:
        return "(absent)"
    return _piece(value, 0) if isinstance(value, str) and value else shown(value, _VALUE)
