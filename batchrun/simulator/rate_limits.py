"""Requests and tokens a minute for each model: what is admitted, and what the headers say.

No I/O: the time is an argument. A bucket fills evenly; `reset` is the time until it is full again,
as with the API, not the time to wait.
"""

from dataclasses import dataclass

from batchrun.simulator.errors import ApiError, render_duration, retry_headers
from batchrun.simulator.settings import SimulatorSettings


@dataclass(frozen=True, slots=True)
class LimitExceeded:
    """Why a request is not admitted."""

    name: str  # requests or tokens
    limit: float  # a minute
    used: float  # of a full bucket
    requested: float
    wait_s: float | None  # None: it will never fit

    def error(self, model: str, *, hints: bool) -> ApiError:
        what = f"{self.name} per min ({'RPM' if self.name == 'requests' else 'TPM'})"
        if not hints:
            message = "Rate limit reached."
        elif self.wait_s is None:
            message = (
                f"Request too large for {model} on {what}: "
                f"Limit {self.limit:.0f}, Requested {self.requested:.0f}."
            )
        else:
            message = (
                f"Rate limit reached for {model} on {what}: "
                f"Limit {self.limit:.0f}, Used {self.used:.0f}, Requested {self.requested:.0f}. "
                f"Please try again in {render_duration(self.wait_s)}."
            )
        error = ApiError(message, code="rate_limit_exceeded", status=429, type=self.name)
        if hints and self.wait_s is not None:
            error.headers |= retry_headers(self.wait_s)
        return error


class TokenBucket:
    """What is left of one limit of one model."""

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


class ModelRateLimits:
    """The buckets of all models."""

    def __init__(self, settings: SimulatorSettings) -> None:
        rates = {"requests": settings.requests_per_minute, "tokens": settings.tokens_per_minute}
        self._rates = {name: rate for name, rate in rates.items() if rate is not None}
        self._burst_s = settings.burst_s
        self._has_headers = settings.hints
        self._models: dict[str, dict[str, TokenBucket]] = {}

    def admit(self, model: str, tokens: float, now_s: float) -> LimitExceeded | None:
        """Takes one request and its tokens where both are there; otherwise says why not."""
        buckets = self._buckets(model, now_s)
        requested = {"requests": 1.0, "tokens": tokens}
        for name, bucket in buckets.items():
            amount = requested[name]
            wait_s = bucket.wait_s(amount, now_s)
            if wait_s:
                used = bucket.capacity - bucket.level(now_s)
                fits = amount <= bucket.capacity
                return LimitExceeded(name, bucket.limit, used, amount, wait_s if fits else None)
        for name, bucket in buckets.items():
            bucket.take(requested[name])
        return None

    def settle(self, model: str, reserved: float, used: float) -> None:
        """Replaces the tokens reserved for an answer by those that it used."""
        bucket = self._models.get(model, {}).get("tokens")
        if bucket is not None:
            bucket.take(used - reserved)

    def headers(self, model: str, now_s: float) -> dict[str, str]:
        """The current `x-ratelimit-*`; empty where `hints` is off."""
        headers: dict[str, str] = {}
        if not self._has_headers:
            return headers
        for name, bucket in self._buckets(model, now_s).items():
            level = bucket.level(now_s)
            headers[f"x-ratelimit-limit-{name}"] = f"{bucket.limit:.0f}"
            headers[f"x-ratelimit-remaining-{name}"] = str(max(int(level), 0))
            full_s = bucket.wait_s(bucket.capacity, now_s)
            headers[f"x-ratelimit-reset-{name}"] = render_duration(full_s)
        return headers

    def _buckets(self, model: str, now_s: float) -> dict[str, TokenBucket]:
        if not self._rates:
            return {}
        buckets = self._models.get(model)
        if buckets is None:
            buckets = {
                name: TokenBucket(rate, self._burst_s, now_s) for name, rate in self._rates.items()
            }
            self._models[model] = buckets
        return buckets
