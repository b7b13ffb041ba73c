"""Requests and tokens a minute for each model: who may come in, who not, and what headers say.

Pure but for the buckets' levels: the time is an argument. A bucket fills evenly; `reset` is the
time until it is full again, as with the API, not the time that has to be waited.
"""

from dataclasses import dataclass
from math import ceil

from batchrun.simulator.api_errors import ApiError
from batchrun.simulator.behavior import Behavior


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request may not come in."""

    of: str  # requests or tokens
    limit: float  # a minute
    used: float  # of a full bucket
    asked: float
    wait_s: float | None  # null: it will never fit

    def error(self, model: str, *, hints: bool) -> ApiError:
        short = "RPM" if self.of == "requests" else "TPM"
        if not hints:
            message = "Rate limit reached."
        elif self.wait_s is None:
            message = (
                f"Request too large for {model} on {self.of} per min ({short}): "
                f"Limit {self.limit:.0f}, Requested {self.asked:.0f}."
            )
        else:
            message = (
                f"Rate limit reached for {model} on {self.of} per min ({short}): "
                f"Limit {self.limit:.0f}, Used {self.used:.0f}, Requested {self.asked:.0f}. "
                f"Please try again in {render_duration(self.wait_s)}."
            )
        return ApiError(message, status=429, type_=self.of, code="rate_limit_exceeded")


class Bucket:
    """What is left of one limit."""

    __slots__ = ("_at", "_level", "capacity", "limit")

    def __init__(self, limit: float, burst_s: float, now_s: float) -> None:
        self.limit = limit
        self.capacity = max(limit * burst_s / 60, 1.0)
        self._level = self.capacity
        self._at = now_s

    def level(self, now_s: float) -> float:
        self._level = min(self.capacity, self._level + max(now_s - self._at, 0.0) * self.limit / 60)
        self._at = now_s
        return self._level

    def take(self, amount: float) -> None:
        """A negative amount gives back."""
        self._level = min(self.capacity, self._level - amount)

    def wait_s(self, amount: float, now_s: float) -> float:
        """Seconds until so much is there; 0 when it is."""
        lack = amount - self.level(now_s)
        return lack * 60 / self.limit if lack > 1e-9 else 0.0


class Limits:
    """The buckets of all models."""

    def __init__(self, behavior: Behavior) -> None:
        self._rates = {
            name: rate
            for name, rate in (
                ("requests", behavior.requests_per_minute),
                ("tokens", behavior.tokens_per_minute),
            )
            if rate is not None
        }
        self._burst_s = behavior.burst_s
        self._models: dict[str, dict[str, Bucket]] = {}

    def admit(self, model: str, tokens: float, now_s: float) -> Refusal | None:
        """Takes one request and its tokens where both are there; else says why not."""
        if not self._rates:
            return None
        buckets = self._buckets(model, now_s)
        asked = {"requests": 1.0, "tokens": tokens}
        for name, bucket in buckets.items():
            wait_s = bucket.wait_s(asked[name], now_s)
            if wait_s:
                fits = asked[name] <= bucket.capacity
                used = bucket.capacity - bucket.level(now_s)
                return Refusal(name, bucket.limit, used, asked[name], wait_s if fits else None)
        for name, bucket in buckets.items():
            bucket.take(asked[name])
        return None

    def settle(self, model: str, reserved: float, used: float) -> None:
        """Puts what an answer really took in the place of what was reserved for it."""
        bucket = self._models.get(model, {}).get("tokens")
        if bucket is not None:
            bucket.take(used - reserved)

    def headers(self, model: str, now_s: float) -> dict[str, str]:
        """`x-ratelimit-*` as they stand now."""
        headers: dict[str, str] = {}
        if not self._rates:
            return headers
        for name, bucket in self._buckets(model, now_s).items():
            level = bucket.level(now_s)
            headers[f"x-ratelimit-limit-{name}"] = f"{bucket.limit:.0f}"
            headers[f"x-ratelimit-remaining-{name}"] = str(max(int(level), 0))
            full_s = bucket.wait_s(bucket.capacity, now_s)
            headers[f"x-ratelimit-reset-{name}"] = render_duration(full_s)
        return headers

    def _buckets(self, model: str, now_s: float) -> dict[str, Bucket]:
        buckets = self._models.get(model)
        if buckets is None:
            buckets = {
                name: Bucket(rate, self._burst_s, now_s) for name, rate in self._rates.items()
            }
            self._models[model] = buckets
        return buckets


def retry_headers(wait_s: float) -> dict[str, str]:
    """`Retry-After` in whole seconds, and the same exactly in `retry-after-ms`."""
    return {
        "Retry-After": str(max(ceil(wait_s), 1)),
        "retry-after-ms": str(max(ceil(wait_s * 1000), 1)),
    }


def render_duration(seconds: float) -> str:
    """12ms, 9.816s, 6m0s, 1h0m5s: rounded up to the millisecond."""
    thousandths = ceil(seconds * 1000 - 1e-6)
    if thousandths < 1000:
        return f"{thousandths}ms"
    whole, rest = divmod(thousandths, 1000)
    hours, within = divmod(whole, 3600)
    minutes, left = divmod(within, 60)
    tail = f"{left}.{rest:03d}".rstrip("0").rstrip(".") + "s"
    if hours:
        return f"{hours}h{minutes}m{tail}"
    return f"{minutes}m{tail}" if minutes else tail
