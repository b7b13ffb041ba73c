"""Response headers that matter, in the spellings of servers and gateways (PROTOCOL B.4). No I/O.

Where a header is looked up by its name, the name is in lower case.
"""

import math
import re
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any

from batchrun.formats.amounts import duration_s
from batchrun.records import AdvertisedLimit


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

    `retry-after-ms`, then `retry-after` as seconds, as a decimal, as an HTTP date or as a duration
    (`6m0s`), then the name it has behind a gateway. When a limit is full again (`...-reset-...`) is
    not when a request may be sent, so those headers are no hints. `now_s` is Unix time.
    """
    milliseconds = _number(headers.get(_RETRY_AFTER_MS))
    if milliseconds is not None:
        return milliseconds / 1000
    for name in _RETRY_AFTER:
        value = headers.get(name)
        if value is None:
            continue
        for read in (_number, duration_s):
            if (seconds := read(value)) is not None:
                return seconds
        if (seconds := _seconds_until(value, time.time() if now_s is None else now_s)) is not None:
            return seconds
    return None


def should_retry(headers: Mapping[str, str]) -> bool | None:
    """What the server itself says about another attempt; None where it says nothing."""
    return {"true": True, "false": False}.get(headers.get(_SHOULD_RETRY, "").lower())


def reported_cost_usd(headers: Mapping[str, str]) -> float | None:
    """What a gateway says that this answer cost."""
    return _number(headers.get(_COST))


_LIMIT_NAME = re.compile(r"(?i)(?:llm_provider-)?(?:x-|anthropic-)?rate-?limit-(.+)", re.DOTALL)
# One of these is there wherever limits are advertised.
_LIMIT_SIGNS = (
    "x-ratelimit-limit-requests",
    "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-limit-project-tokens",
    "x-ratelimit-limit-project-requests",
    "x-ratelimit-limit-tokens_usage_based",
    "x-ratelimit-limit-requests-minute",
    "x-ratelimit-limit-tokens-minute",
    "llm_provider-x-ratelimit-limit-requests",
    "llm_provider-x-ratelimit-limit-tokens",
    "anthropic-ratelimit-requests-limit",
    "anthropic-ratelimit-tokens-limit",
    "x-ratelimit-limit",
    "x-rate-limit-limit",
    "ratelimit-limit",
)
_SIZES = _LIMIT_SIGNS[:2]
_EVERY_S = 0.01  # between two answers that are read
_ERRORS = 300  # and above
_MOST_SIZES = 64
_OTHER_WINDOWS = {"second", "hour", "day", "week", "month"}  # limits are those of a minute
_EPOCH_S = 1e8  # a reset from here on is a point in time; in milliseconds from the next on
_EPOCH_MS = 1e11


class AdvertisedLimits:
    """The limits that answers advertise; of those with the same sizes, a hundred a second are read.

    What remains of a limit changes with each answer, and a row's share of reading it is 12 of
    180 µs. Another model, or a limit that was changed, has other sizes and is read at once.
    """

    def __init__(self) -> None:
        self._read_s: dict[tuple[bytes | None, bytes | None], float] = {}  # by sizes

    def read(
        self, headers: ResponseHeaders, http_status: int, now_s: float
    ) -> tuple[AdvertisedLimit, ...]:
        """Those of one answer; of an error always."""
        sizes = headers.raw_pair(*_SIZES)
        if http_status < _ERRORS and now_s < self._read_s.get(sizes, -math.inf) + _EVERY_S:
            return ()
        if len(self._read_s) >= _MOST_SIZES:
            self._read_s.clear()
        self._read_s[sizes] = now_s
        return advertised_limits(headers)


def advertised_limits(
    headers: Mapping[str, str], now_s: float | None = None
) -> tuple[AdvertisedLimit, ...]:
    """The limits of a minute that an answer advertises, in the order of their headers.

    `of` is `requests` or `tokens`, or `input tokens` or `output tokens` where these have limits of
    their own. What cannot be read is None; a limit is left out where its size means "no limit"
    (Azure's -1 and 0) or cannot be read, or where neither size nor remaining is given. `now_s` is
    Unix time.
    """
    # Going through all names costs a microsecond or two, and most servers advertise nothing.
    if not any(map(headers.__contains__, _LIMIT_SIGNS)):
        return ()
    found = _limit_headers(tuple(headers))
    read = [_read_limit(of, names, headers, now_s) for of, names in found]
    return tuple([limit for limit in read if limit is not None])


@lru_cache(maxsize=64)
def _limit_headers(names: tuple[str, ...]) -> tuple[tuple[str, dict[str, str]], ...]:
    """What each limit is of, and its headers: `limit`, `remaining`, `reset` to their names.

    A server's answers have the same few sets of names.
    """
    limits: dict[tuple[str, ...], dict[str, str]] = {}
    for name in names:
        match = _LIMIT_NAME.fullmatch(name)
        if match is None:
            continue
        parts = match[1].lower().replace("_", "-").split("-")
        for field in ("limit", "remaining", "reset"):
            if field in parts:
                parts.remove(field)
                prefix = name[: match.start(1)].lower()
                limits.setdefault((prefix, *parts), {}).setdefault(field, name)
                break
    return tuple((of, found) for (_, *parts), found in limits.items() if (of := _dimension(parts)))


def _dimension(parts: list[str]) -> str | None:
    if not _OTHER_WINDOWS.isdisjoint(parts):
        return None
    if "tokens" in parts:
        side = next((part for part in ("input", "output") if part in parts), None)
        return f"{side} tokens" if side else "tokens"
    if not parts or parts == ["minute"] or "requests" in parts or "req" in parts:
        return "requests"
    return None


def _read_limit(
    of: str, names: dict[str, str], headers: Mapping[str, str], now_s: float | None
) -> AdvertisedLimit | None:
    values = {field: headers.get(name) for field, name in names.items()}
    limit, remaining = _count(values.get("limit")), _count(values.get("remaining"))
    if "limit" in names and not limit:  # what remains of no limit says nothing
        return None
    if limit is None and remaining is None:
        return None
    reset = values.get("reset")
    reset_s = None if reset is None else _reset_s(reset, now_s)
    header = names.get("limit") or names["remaining"]
    return AdvertisedLimit(header, of, limit, remaining, reset_s)


def _count(value: str | None) -> float | None:
    """A number; of `100, 100;w=60`, the first, where the window is a minute."""
    number = _number(value)
    if number is None and value is not None:
        first, _, rest = value.replace(",", ";").partition(";")
        windows = re.findall(r"w=([0-9]+)", rest)
        number = _number(first) if all(window == "60" for window in windows) else None
    return number


def _reset_s(text: str, now_s: float | None) -> float | None:
    """Seconds from now: given as such, as a duration, a date, or seconds or ms since 1970."""
    seconds = _number(text) if text[-1:].isdecimal() else duration_s(text)
    if seconds is not None and seconds < _EPOCH_S:
        return seconds
    now_s = time.time() if now_s is None else now_s
    if seconds is not None:
        return max(0.0, (seconds / 1000 if seconds >= _EPOCH_MS else seconds) - now_s)
    try:
        moment = datetime.fromisoformat(text.strip())
        return max(0.0, moment.replace(tzinfo=moment.tzinfo or UTC).timestamp() - now_s)
    except (ValueError, OverflowError):
        return _seconds_until(text, now_s)


def _number(value: str | None) -> float | None:
    if value is None:
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _seconds_until(date: str, now_s: float) -> float | None:
    try:
        return max(0.0, parsedate_to_datetime(date).timestamp() - now_s)
    except (ValueError, OverflowError):
        return None
