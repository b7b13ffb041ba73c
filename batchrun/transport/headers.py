"""Headers that matter, in the spellings that servers and gateways use (PROTOCOL B.4). No I/O.

ResponseHeaders are looked up by their names in lower case.
"""

import math
import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache

from msgspec import Struct

from batchrun.formats.amounts import duration_s
from batchrun.records import AdvertisedLimit
from batchrun.transport.answer_reader import ResponseHeaders

_REQUEST_IDS = (
    "x-request-id",
    "x-oneapi-request-id",
    "apim-request-id",
    "request-id",
    "x-litellm-call-id",
    "cf-ray",
)
_RETRY_AFTER_MS = "retry-after-ms"
_RETRY_AFTER = ("retry-after", "llm_provider-retry-after")
_SHOULD_RETRY, _COST = "x-should-retry", "x-litellm-response-cost"
_HINTS = frozenset({_RETRY_AFTER_MS, *_RETRY_AFTER, _SHOULD_RETRY, _COST})
_LIMIT_NAME = re.compile(r"(?i)(?:llm_provider-)?(?:x-|anthropic-)?rate-?limit-(.+)", re.DOTALL)
_EVIDENCE = (
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
_EVERY_S = 0.01  # between two answers that are read
_ERRORS = 300  # and above
_SIZES = _EVIDENCE[:2]
_MOST_SIZES = 64
_YES_OR_NO = {"true": True, "false": False}
_OTHER_WINDOWS = {"second", "hour", "day", "week", "month"}  # limits are those of a minute
_EPOCH_S = 1e8  # a reset from here on is a point in time; in milliseconds from the next on
_EPOCH_MS = 1e11


def request_id(headers: Mapping[str, str]) -> str | None:
    """What to quote to the provider's support."""
    for name in _REQUEST_IDS:
        value = headers.get(name)
        if value:
            return value
    return None


def retry_after_s(headers: Mapping[str, str], now_s: float | None = None) -> float | None:
    """Seconds that the server asks to wait; null where it says nothing that can be read.

    `retry-after-ms`, then `retry-after` as seconds, as a decimal, as an HTTP date or as a duration
    (`6m0s`), then the name it has behind a gateway. When a limit is full again (`...-reset-...`) is
    not when a request may go, so those headers are no hints. `now_s` is Unix time.
    """
    milliseconds = _number(headers.get(_RETRY_AFTER_MS))
    if milliseconds is not None:
        return milliseconds / 1000
    for name in _RETRY_AFTER:
        value = headers.get(name)
        if value is None:
            continue
        seconds = _number(value)
        if seconds is None:
            seconds = duration_s(value)
        if seconds is None:
            seconds = _seconds_until(value, time.time() if now_s is None else now_s)
        if seconds is not None:
            return seconds
    return None


def should_retry(headers: Mapping[str, str]) -> bool | None:
    """What the server itself says about another try; null where it says nothing."""
    said = headers.get(_SHOULD_RETRY)
    return None if said is None else _YES_OR_NO.get(said.lower())


def reported_cost_usd(headers: Mapping[str, str]) -> float | None:
    """What a gateway says that this answer cost."""
    return _number(headers.get(_COST))


class Hints(Struct, frozen=True):
    """What few answers say: about another try, and about money."""

    retry_after_s: float | None = None
    should_retry: bool | None = None
    reported_cost_usd: float | None = None


_NO_HINTS = Hints()


def hints(headers: ResponseHeaders) -> Hints:
    """Those of one answer."""
    if not headers.tells_any(_HINTS):  # 140 instructions fewer than five looks, of a row's 4,900
        return _NO_HINTS
    return Hints(retry_after_s(headers), should_retry(headers), reported_cost_usd(headers))


class _Spoken(Struct, frozen=True):
    """Names of the headers that tell one limit."""

    of: str
    limit: str | None = None
    remaining: str | None = None
    reset: str | None = None


def advertised_limits(
    headers: Mapping[str, str], now_s: float | None = None
) -> tuple[AdvertisedLimit, ...]:
    """The limits of a minute that an answer tells, in the order of their headers.

    `of` is `requests` or `tokens`, or `input tokens` or `output tokens` where these have limits of
    their own. What cannot be read is null; a limit is left out where its size says "not told"
    (Azure's -1 and 0) or cannot be read, or where it has neither size nor rest. `now_s` is Unix
    time.
    """
    # Going through all names costs a microsecond or two, and most servers tell nothing.
    if not any(map(headers.__contains__, _EVIDENCE)):
        return ()
    # A server's answers have the same few sets of names: what they mean is worked out once.
    spoken = _spoken(tuple(headers))
    return tuple([one for names in spoken if (one := _told(names, headers, now_s)) is not None])


class AdvertisedLimits:
    """The limits that answers tell; of those that tell the same sizes, a hundred a second are read.

    What is left of a limit changes with each answer, and a row's share of reading it is 12 of
    180 µs. Another model, or a limit that was changed, has other sizes and is read at once.
    """

    def __init__(self) -> None:
        self._read_s: dict[tuple[bytes | None, ...], float] = {}  # by sizes

    def read(
        self, headers: ResponseHeaders, http_status: int, now_s: float
    ) -> tuple[AdvertisedLimit, ...]:
        """Those of one answer; of an error always."""
        sizes = headers.pair(*_SIZES)
        if http_status < _ERRORS and now_s < self._read_s.get(sizes, -math.inf) + _EVERY_S:
            return ()
        if len(self._read_s) >= _MOST_SIZES:
            self._read_s.clear()
        self._read_s[sizes] = now_s
        return advertised_limits(headers)


@lru_cache(maxsize=64)
def _spoken(names: tuple[str, ...]) -> tuple[_Spoken, ...]:
    """Which names tell of limits; each limit's headers together."""
    groups: dict[tuple[str, ...], dict[str, str]] = {}
    for name in names:
        match = _LIMIT_NAME.fullmatch(name)
        if match is None:
            continue
        parts = match[1].lower().replace("_", "-").split("-")
        for field in ("limit", "remaining", "reset"):
            if field in parts:
                parts.remove(field)
                prefix = name[: match.start(1)].lower()
                groups.setdefault((prefix, *parts), {}).setdefault(field, name)
                break
    return tuple(
        _Spoken(of, **found) for (_, *parts), found in groups.items() if (of := _dimension(parts))
    )


def _dimension(parts: list[str]) -> str | None:
    if not _OTHER_WINDOWS.isdisjoint(parts):
        return None
    if "tokens" in parts:
        side = next((part for part in ("input", "output") if part in parts), None)
        return f"{side} tokens" if side else "tokens"
    if not parts or parts == ["minute"] or "requests" in parts or "req" in parts:
        return "requests"
    return None


def _told(
    names: _Spoken, headers: Mapping[str, str], now_s: float | None
) -> AdvertisedLimit | None:
    limit = remaining = reset_s = None
    header = names.limit or names.remaining
    if names.limit is not None:
        limit = _count(headers.get(names.limit))
        if not limit:  # a rest of a limit that is not told is no rest
            return None
    if names.remaining is not None:
        remaining = _count(headers.get(names.remaining))
    if header is None or (limit is None and remaining is None):
        return None
    if names.reset is not None and (text := headers.get(names.reset)) is not None:
        reset_s = _reset_s(text, now_s)
    return AdvertisedLimit(header, names.of, limit, remaining, reset_s)


def _count(value: str | None) -> float | None:
    """A number; of `100, 100;w=60`, the first, where the window is a minute."""
    number = _number(value)
    if number is None and value is not None:
        first, _, rest = value.replace(",", ";").partition(";")
        windows = re.findall(r"w=([0-9]+)", rest)
        number = _number(first) if all(window == "60" for window in windows) else None
    return number


def _reset_s(text: str, now_s: float | None) -> float | None:
    """Seconds from now: told as such, as a duration, as a date or as seconds or ms since 1970."""
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
