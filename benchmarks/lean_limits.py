"""What the lean server allows, and when: buckets, a schedule, an outage. Pure but for the levels.

`now_s` is seconds since the first request arrived.
"""

import math

from msgspec import Struct


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """How the server behaves; a rate, a cap or an outage that is null is not there."""

    requests_per_s: float | None = None
    tokens_per_minute: float | None = None
    burst_s: float = 1.0  # what a full bucket holds
    hints: bool = True  # limits in headers, and when to come back; else bare 429s
    in_flight: int | None = None  # more are answered with 503
    latency_s: float = 0.5
    spread: float = 0.3  # latencies are drawn evenly from latency_s * (1 - spread .. 1 + spread)
    refusal_s: float = 0.01
    output_tokens: float = 40.0  # median; lengths are lognormal and belong to the body
    output_sigma: float = 0.5
    output_most: int = 4000
    default_output_tokens: int = 256  # reserved where a request does not say `max_output_tokens`
    changes: tuple[tuple[float, float], ...] = ()  # from this second on, rates times this factor
    outage: tuple[float, float] | None = None  # from second, to second: 503 for everything
    slow_every: int = 0  # one attempt in so many, drawn anew for each
    slow_factor: float = 1.0  # takes so many times as long
    seed: int = 1


class Bucket:
    """One rate: what may come in now, and what would have come in under full demand."""

    __slots__ = ("_at_s", "_burst_s", "_changes", "_level", "_per_s")

    def __init__(
        self, per_s: float, burst_s: float, changes: tuple[tuple[float, float], ...]
    ) -> None:
        self._per_s = per_s
        self._burst_s = burst_s
        self._changes = ((0.0, 1.0), *changes)
        self._at_s = 0.0
        self._level = self.capacity(0.0)

    def rate(self, now_s: float) -> float:
        """What is granted a second."""
        return self._per_s * [factor for at_s, factor in self._changes if at_s <= now_s][-1]

    def capacity(self, now_s: float) -> float:
        return max(self.rate(now_s) * self._burst_s, 1.0)

    def granted(self, until_s: float) -> float:
        """All that flows in until then; what lay there at the start is not counted."""
        ends = [at_s for at_s, _ in self._changes[1:]] + [math.inf]
        return sum(
            max(0.0, min(until_s, end_s) - at_s) * self._per_s * factor
            for (at_s, factor), end_s in zip(self._changes, ends, strict=True)
        )

    def level(self, now_s: float) -> float:
        if now_s > self._at_s:
            self._level += self.granted(now_s) - self.granted(self._at_s)
            self._at_s = now_s
        self._level = min(self._level, self.capacity(now_s))
        return self._level

    def take(self, amount: float) -> None:
        """A negative amount gives back."""
        self._level -= amount

    def wait_s(self, amount: float, now_s: float) -> float:
        """Until so much is there, at the rate of now. More than a full bucket asks a full one."""
        lack = min(amount, self.capacity(now_s)) - self.level(now_s)
        return lack / self.rate(now_s) if lack > 1e-9 else 0.0


class Refusal(Struct, frozen=True):
    """Why a request may not come in."""

    of: str  # requests or tokens
    limit: float  # a minute
    used: float
    asked: float
    wait_s: float


class Limits:
    """The buckets of the server."""

    def __init__(self, settings: Settings) -> None:
        rates = {"requests": settings.requests_per_s}
        if settings.tokens_per_minute is not None:
            rates["tokens"] = settings.tokens_per_minute / 60
        self.buckets = {
            of: Bucket(per_s, settings.burst_s, settings.changes)
            for of, per_s in rates.items()
            if per_s is not None
        }

    def admit(self, tokens: int, now_s: float) -> Refusal | None:
        """Takes one request and its tokens where both are there; else says why not."""
        asked = {"requests": 1.0, "tokens": float(tokens)}
        for of, bucket in self.buckets.items():
            wait_s = bucket.wait_s(asked[of], now_s)
            if wait_s:
                used = bucket.capacity(now_s) - bucket.level(now_s)
                return Refusal(of, bucket.rate(now_s) * 60, used, asked[of], wait_s)
        for of, bucket in self.buckets.items():
            bucket.take(asked[of])
        return None

    def settle(self, reserved: int, used: int) -> None:
        """Puts the tokens that were used in the place of those reserved."""
        bucket = self.buckets.get("tokens")
        if bucket is not None:
            bucket.take(used - reserved)

    def headers(self, now_s: float) -> str:
        """The limits as they stand, in header lines."""
        lines = ""
        for of, bucket in self.buckets.items():
            full_s = bucket.wait_s(bucket.capacity(now_s), now_s)
            lines += (
                f"x-ratelimit-limit-{of}: {bucket.rate(now_s) * 60:.0f}\r\n"
                f"x-ratelimit-remaining-{of}: {max(0, int(bucket.level(now_s)))}\r\n"
                f"x-ratelimit-reset-{of}: {math.ceil(full_s * 1000)}ms\r\n"
            )
        return lines


def allowed(settings: Settings, of: str, until_s: float, *, at_start: bool = True) -> float:
    """Requests or tokens that would have been granted until then to a client with no end of them.

    `at_start` counts what the bucket holds when the first request comes.
    """
    bucket = Limits(settings).buckets[of]
    return bucket.granted(until_s) + (bucket.capacity(0.0) if at_start else 0.0)
