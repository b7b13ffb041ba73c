"""The limits that headers advertise, for whatever window, in the spellings of servers. No I/O.

`X-RateLimit-*` and its relatives with or without a window in their names, `RateLimit-Limit` with
windows in its value, `RateLimit-Policy` and `RateLimit` (drafts of the IETF's httpapi group).
Names are looked up in lower case.
"""

import math
import re
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache

from msgspec import Struct

from batchrun.formats.amounts import duration_s, number_of
from batchrun.records import AdvertisedLimit
from batchrun.transport.headers import ResponseHeaders, as_moment_s

_SIZES = ("x-ratelimit-limit-requests", "x-ratelimit-limit-tokens")
_EVERY_S = 0.01  # between two answers that are read
_ERRORS = 300  # and above
_MOST_SIZES = 64

_LIMIT_NAME = re.compile(r"(?i)(?:llm_provider-)?(?:x-|anthropic-)?rate-?limit-(.+)", re.DOTALL)
_POLICIES = ("ratelimit-policy", "x-ratelimit-policy")
_STATES = ("ratelimit", "x-ratelimit")
_ITEM = re.compile(r'(?:[^,"]|"[^"]*")+')
_PARAMETER = re.compile(r'([a-z]+)\s*=\s*("[^"]*"|[^;"]*)')
_WINDOWS_S = {
    "second": 1.0,
    "minute": 60.0,
    "hour": 3600.0,
    **dict.fromkeys(("day", "week", "month", "year"), math.inf),
}
_LONGEST_WINDOW_S = 7200.0  # a limit for a longer one is no rate


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
    """The limits that an answer advertises, in the order of their headers.

    `of` is `requests` or `tokens`, or `input tokens` or `output tokens` where these have limits of
    their own; `window_s` is None where nothing says what the limit is for. What cannot be read is
    None; a limit is left out where its size means "no limit" (Azure's -1 and 0) or cannot be read,
    where neither size nor remaining is given, and where it is for a day or more. `now_s` is Unix
    time.
    """
    named, has_policies = _limit_headers(tuple(headers))
    if not named and not has_policies:
        return ()
    limits: list[AdvertisedLimit] = []
    policies = list(_policies(headers, now_s)) if has_policies else []
    # A limit without a window repeats one of those with theirs, wherever there are any (Kong).
    has_windows = any(one.window_s is not None and one.of == "requests" for one in named)
    for one in named:
        if not (one.is_plain and has_windows):
            limits += _read(one, headers, policies, now_s)
    limits += [policy for policy in policies if policy is not None]
    return tuple([one for one in limits if (one.window_s or 0.0) <= _LONGEST_WINDOW_S])


class _Named(Struct, frozen=True):
    """The headers of one limit."""

    of: str
    window_s: float | None
    is_plain: bool  # the name says no more than that it is a limit
    names: dict[str, str]  # `limit`, `remaining`, `reset` to the headers' names


@lru_cache(maxsize=64)
def _limit_headers(names: tuple[str, ...]) -> tuple[tuple[_Named, ...], bool]:
    """The limits that headers with these names are about, and whether some hold policies.

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
    named = []
    for (_, *parts), found in limits.items():
        windows = [_WINDOWS_S[part] for part in parts if part in _WINDOWS_S]
        rest = [part for part in parts if part not in _WINDOWS_S and part != "per"]
        if (of := _dimension(rest)) is not None:
            named.append(_Named(of, windows[0] if windows else None, not parts, found))
    has_policies = any(name.lower() in (*_POLICIES, *_STATES) for name in names)
    return tuple(named), has_policies


def _dimension(parts: list[str]) -> str | None:
    if "tokens" in parts:
        side = next((part for part in ("input", "output") if part in parts), None)
        return f"{side} tokens" if side else "tokens"
    return "requests" if not parts or "requests" in parts or "req" in parts else None


def _read(
    named: _Named,
    headers: Mapping[str, str],
    policies: list[AdvertisedLimit | None],
    now_s: float | None,
) -> Iterator[AdvertisedLimit]:
    """The limit that these headers advertise; a policy that is the same limit is taken out."""
    values = {field: headers.get(name) for field, name in named.names.items()}
    (limit, windows), remaining = _sizes(values.get("limit")), number_of(values.get("remaining"))
    if "limit" in named.names and not limit:  # what remains of no limit says nothing
        return
    if limit is None and remaining is None:
        return
    reset = values.get("reset")
    header = named.names.get("limit") or named.names["remaining"]
    window_s = named.window_s
    for size, length_s in windows:
        if window_s is None and (size == limit or len(windows) == 1):
            window_s = length_s
        elif size:
            yield AdvertisedLimit(f"{header};w={length_s:g}", named.of, size, window_s=length_s)
    if named.is_plain and window_s is None:
        same = [one for one in policies if one is not None and one.limit == limit]
        if same:
            window_s = same[0].window_s
            policies[policies.index(same[0])] = None
    reset_s = None if reset is None else _reset_s(reset, now_s)
    yield AdvertisedLimit(header, named.of, limit, remaining, reset_s, window_s)


def _sizes(text: str | None) -> tuple[float | None, list[tuple[float | None, float]]]:
    """A limit, and of `100, 100;w=60, 1000;w=3600` the sizes with their windows in seconds."""
    if text is None or (number := number_of(text)) is not None:
        return (None if text is None else number), []
    windows, first = [], None
    for item in _ITEM.findall(text):
        size, _, rest = item.partition(";")
        first = number_of(size) if first is None else first
        length_s = number_of(dict(_PARAMETER.findall(rest)).get("w"))
        if length_s:
            windows.append((number_of(size), length_s))
    return first, windows


def _policies(headers: Mapping[str, str], now_s: float | None) -> Iterator[AdvertisedLimit | None]:
    """Those of `RateLimit-Policy`, each with what `RateLimit` says of it by its name."""
    states: dict[str, dict[str, str]] = {}
    for header in _STATES:
        for item in _ITEM.findall(headers.get(header) or ""):
            name, _, _ = item.partition(";")
            # An older draft has `limit=100, remaining=50, reset=5`.
            states.setdefault(name.strip() if "=" not in name else "", {}).update(
                _PARAMETER.findall(item)
            )
    for header in _POLICIES:
        for item in _ITEM.findall(headers.get(header) or ""):
            name, _, rest = item.partition(";")
            name, parameters = name.strip(), dict(_PARAMETER.findall(rest))
            size = number_of(parameters.get("q", name))
            unit = parameters.get("qu", "requests").strip('"')
            window_s = number_of(parameters.get("w"))
            if not size or unit not in ("requests", "tokens"):
                continue
            state = states.get(name, {})
            if not state and number_of(states.get("", {}).get("limit")) == size:
                state = states[""]
            remaining = number_of(state.get("r", state.get("remaining")))
            reset = state.get("t", state.get("reset"))
            reset_s = None if reset is None else _reset_s(reset, now_s)
            label = f"{header} {name}" if "q" in parameters else f"{header};w={window_s or 0:g}"
            yield AdvertisedLimit(label, unit, size, remaining, reset_s, window_s or None)


def _reset_s(text: str, now_s: float | None) -> float | None:
    """Seconds from now: given as such, as a duration, a date, or seconds or ms since 1970.

    What is given as a whole second since 1970 is a whole number of seconds from now.
    """
    seconds = number_of(text) if text[-1:].isdecimal() else duration_s(text)
    now_s = time.time() if now_s is None else now_s
    if seconds is not None:
        moment_s = as_moment_s(seconds)
        return seconds if moment_s is None else _from_now(moment_s, now_s)
    try:
        moment = datetime.fromisoformat(text.strip())
        return _from_now(moment.replace(tzinfo=moment.tzinfo or UTC).timestamp(), now_s)
    except (ValueError, OverflowError):
        pass
    try:
        return _from_now(parsedate_to_datetime(text).timestamp(), now_s)
    except (ValueError, OverflowError):
        return None


def _from_now(moment_s: float, now_s: float) -> float:
    left_s = max(0.0, moment_s - now_s)
    return float(math.ceil(left_s)) if moment_s.is_integer() else left_s
