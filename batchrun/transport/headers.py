"""Response headers that matter, in the spellings of servers and gateways (PROTOCOL B.4). No I/O.

Where a header is looked up by its name, the name is in lower case.
"""

import time
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any

from batchrun.formats.amounts import duration_s, number_of


class ResponseHeaders(Mapping[str, str]):
    """By name in lower case; the first of a name counts.

    Of some twenty headers a handful is looked at: all of them in a multidict took 4.3 µs of a row,
    this 0.7 and 0.1 for each one looked at.
    """

    __slots__ = ("_indexes", "_values")

    def __init__(self, lines: Mapping[bytes, bytes]) -> None:
        self._indexes = _indexes(tuple(lines))
        self._values = tuple(lines.values())

    def __getitem__(self, name: str) -> str:
        return self._values[self._indexes[name]].decode("utf-8", "surrogateescape")

    def get(self, name: str, /, default: Any = None) -> Any:  # Mapping's raises and catches
        index = self._indexes.get(name)
        return default if index is None else self._values[index].decode("utf-8", "surrogateescape")

    def raw_pair(self, one: str, other: str) -> tuple[bytes | None, bytes | None]:
        """Two values as they arrived."""
        first, second = self._indexes.get(one), self._indexes.get(other)
        values = self._values
        return None if first is None else values[first], None if second is None else values[second]

    def has_any(self, names: frozenset[str]) -> bool:
        return not self._indexes.keys().isdisjoint(names)

    def content_encoding(self) -> str:
        """In lower case; empty where the body is not compressed."""
        encoding: str = self.get("content-encoding", "").strip().lower()
        return "" if encoding == "identity" else encoding

    def __contains__(self, name: object) -> bool:
        return name in self._indexes

    def __iter__(self) -> Iterator[str]:
        return iter(self._indexes)

    def __len__(self) -> int:
        return len(self._indexes)


@lru_cache(maxsize=64)
def _indexes(names: tuple[bytes, ...]) -> dict[str, int]:
    """Each name to its position. A server's answers have the same few sets of names."""
    indexes: dict[str, int] = {}
    for index, name in enumerate(names):
        indexes.setdefault(name.decode("latin-1").lower(), index)
    return indexes


def content_type_of(headers: Mapping[str, str]) -> str | None:
    """In lower case, without its parameters; None where none is given."""
    return headers.get("content-type", "").partition(";")[0].strip().lower() or None


_REQUEST_IDS = (
    "x-request-id",
    "x-oneapi-request-id",
    "apim-request-id",
    "request-id",
    "x-litellm-call-id",
    "cf-ray",
)


def request_id(headers: Mapping[str, str]) -> str | None:
    """What to quote to the provider's support."""
    for name in _REQUEST_IDS:
        value = headers.get(name)
        if value:
            return value
    return None


_RETRY_AFTER_MS = "retry-after-ms"
_RETRY_AFTER = ("retry-after", "llm_provider-retry-after")
_SHOULD_RETRY, _COST = "x-should-retry", "x-litellm-response-cost"
# Few answers have any: this look saves 140 of a row's 4,900 instructions.
HINTS = frozenset({_RETRY_AFTER_MS, *_RETRY_AFTER, _SHOULD_RETRY, _COST})
ERROR_TYPE = "x-amzn-errortype"  # `ThrottlingException`, perhaps with `:` and an address


def retry_after_s(headers: Mapping[str, str], now_s: float | None = None) -> float | None:
    """Seconds that the server asks to wait; None where it says nothing that can be read.

    `retry-after-ms`, then `retry-after` as seconds, as a decimal, as an HTTP date, as a moment in
    seconds or ms since 1970, or as a duration (`6m0s`), then the name it has behind a gateway. When
    a limit is full again (`...-reset-...`) is not when a request may be sent, so those headers are
    no hints. `now_s` is Unix time.
    """
    milliseconds = number_of(headers.get(_RETRY_AFTER_MS))
    if milliseconds is not None:
        return _until(milliseconds, now_s) if milliseconds >= _EPOCH_MS else milliseconds / 1000
    for name in _RETRY_AFTER:
        value = headers.get(name)
        if value is None:
            continue
        if (seconds := number_of(value)) is not None:
            return _until(seconds, now_s)
        if (seconds := duration_s(value)) is not None:
            return seconds
        if (seconds := _seconds_until(value, time.time() if now_s is None else now_s)) is not None:
            return seconds
    return None


def should_retry(headers: Mapping[str, str]) -> bool | None:
    """What the server itself says about another attempt; None where it says nothing."""
    return {"true": True, "false": False}.get(headers.get(_SHOULD_RETRY, "").lower())


def reported_cost_usd(headers: Mapping[str, str]) -> float | None:
    """What a gateway says that this answer cost."""
    return number_of(headers.get(_COST))


_EPOCH_S = 1e8  # seconds from here on are a moment; milliseconds from the next on
_EPOCH_MS = 1e11


def _until(seconds: float, now_s: float | None) -> float:
    """Seconds from now; what is too long for a wait is a moment, in seconds or ms since 1970."""
    moment_s = as_moment_s(seconds)
    if moment_s is None:
        return seconds
    return max(0.0, moment_s - (time.time() if now_s is None else now_s))


def as_moment_s(number: float) -> float | None:
    """The Unix time that a number is, in seconds or ms since 1970; None where it is a wait."""
    if number < _EPOCH_S:
        return None
    return number / 1000 if number >= _EPOCH_MS else number


def _seconds_until(date: str, now_s: float) -> float | None:
    try:
        return max(0.0, parsedate_to_datetime(date).timestamp() - now_s)
    except (ValueError, OverflowError):
        return None
