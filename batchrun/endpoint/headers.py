"""Headers that matter, in the spellings that servers and gateways use (PROTOCOL B.4). Pure."""

import math
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

from batchrun.policy.durations import duration_s

_REQUEST_IDS = (
    "x-request-id",
    "x-oneapi-request-id",
    "apim-request-id",
    "request-id",
    "x-litellm-call-id",
    "cf-ray",
)
_RETRY_AFTER = ("retry-after", "llm_provider-retry-after")


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
    milliseconds = _number(headers.get("retry-after-ms"))
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
    return {"true": True, "false": False}.get(headers.get("x-should-retry", "").lower())


def reported_cost_usd(headers: Mapping[str, str]) -> float | None:
    """What a gateway says that this answer cost."""
    return _number(headers.get("x-litellm-response-cost"))


def _number(value: str | None) -> float | None:
    try:
        number = float(value) if value is not None else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _seconds_until(date: str, now_s: float) -> float | None:
    try:
        return max(0.0, parsedate_to_datetime(date).timestamp() - now_s)
    except (ValueError, OverflowError):
        return None
