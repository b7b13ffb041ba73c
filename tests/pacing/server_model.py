"""A server that limits: what it makes of a request that arrives, decided at once. No clock.

Requests arrive in the order they are sent, each after a jitter; whether one is let in is settled
then, and the answer, or the refusal, is back after its latency.
"""

import math
import random
from dataclasses import dataclass, field

from batchrun.errors import ErrorKind
from batchrun.records import AdvertisedLimit, Finish

HEADERS = "headers"  # x-ratelimit-*, and an exact hint with each refusal
MESSAGE = "message"  # an exact hint with each refusal
SECONDS = "seconds"  # Retry-After in whole seconds alone
BARE = "bare"  # nothing


@dataclass(frozen=True)
class Plan:
    """How a server limits and answers."""

    requests: float | None = None  # a second
    tokens: float | None = None  # a second
    burst_s: float = 1.0  # what a full bucket holds, in seconds of its limit; three at least
    window_s: float | None = None  # a fixed window of that length in place of the bucket
    in_flight: int | None = None  # one more gets 503
    latency_s: float = 1.0  # median
    spread: float = 0.3  # sigma of the latency's logarithm
    refusal_s: float = 0.05  # until a refusal is back
    hints: str = BARE
    jitter_s: float = 0.002  # of the way to the server
    said_s: float = 60.0  # the window that its headers' limits are for
    is_named: bool = False  # they name it
    is_rounded: bool = False  # they give whole seconds
    changes: tuple[tuple[float, float], ...] = ()  # from then on, so many times the first limits

    def factor(self, age_s: float) -> float:
        now = 1.0
        for at_s, factor in self.changes:
            if age_s >= at_s:
                now = factor
        return now


@dataclass
class _Meter:
    """A bucket, or a fixed window, of requests or tokens."""

    of: str
    first: float  # the limit a second to begin with
    burst_s: float
    least: float
    window_s: float | None
    plan: Plan
    rate: float = field(init=False)
    level: float = field(init=False)
    at_s: float = 0.0

    def __post_init__(self) -> None:
        self.rate = self.first
        self.level = self.capacity

    @property
    def capacity(self) -> float:
        if self.window_s is not None:
            return max(self.rate * self.window_s, 1.0)
        return max(self.rate * self.burst_s, self.least)

    def fill(self, now_s: float, rate: float) -> None:
        if rate != self.rate:
            full = self.capacity
            self.rate = rate
            if self.window_s is not None:
                self.level += self.capacity - full
        if self.window_s is None:
            self.level = min(self.capacity, self.level + (now_s - self.at_s) * self.rate)
        elif now_s // self.window_s > self.at_s // self.window_s:
            self.level = self.capacity
        self.at_s = now_s

    def wait_s(self, amount: float) -> float:
        if amount <= self.level + 1e-9:
            return 0.0
        if self.window_s is not None:
            return self.window_s - self.at_s % self.window_s
        return (min(amount, self.capacity) - self.level) / self.rate

    def told(self) -> AdvertisedLimit:
        if self.window_s is not None:
            reset_s = self.window_s - self.at_s % self.window_s
        else:
            reset_s = (self.capacity - self.level) / self.rate
        if self.plan.is_rounded:
            reset_s = float(math.ceil(reset_s))
        return AdvertisedLimit(
            f"x-ratelimit-limit-{self.of}",
            self.of,
            float(round(self.rate * self.plan.said_s)),
            float(max(0, int(self.level))),
            reset_s,
            self.plan.said_s if self.plan.is_named else None,
        )


class Server:
    """One server, as its plan says; times count from when it began."""

    def __init__(self, plan: Plan, seed: int) -> None:
        self.plan = plan
        self.now = 0  # in flight
        self.answers = 0
        self.latencies_s = 0.0  # of all of them
        self._random = random.Random(seed)
        self._arrived_s = 0.0
        self._meters: list[_Meter] = []
        if plan.requests is not None:
            self._meters.append(
                _Meter("requests", plan.requests, plan.burst_s, 3.0, plan.window_s, plan)
            )
        if plan.tokens is not None:
            self._meters.append(
                _Meter("tokens", plan.tokens, plan.burst_s, 1.0, plan.window_s, plan)
            )

    def take(self, tokens: int, now_s: float) -> tuple[float, Finish]:
        """Seconds until the answer, and what it says; `tokens` is what it will have used."""
        plan = self.plan
        jitter_s = self._random.random() * plan.jitter_s
        now_s = self._arrived_s = max(self._arrived_s, now_s + jitter_s)
        factor = plan.factor(now_s) if plan.changes else 1.0
        if plan.in_flight is not None and self.now >= max(1, int(plan.in_flight * factor)):
            return self._refused(ErrorKind.OVERLOADED, 1.0)
        wait_s = 0.0
        for meter in self._meters:
            meter.fill(now_s, meter.first * factor)
            wait_s = max(wait_s, meter.wait_s(1 if meter.of == "requests" else tokens))
        if wait_s:
            return self._refused(ErrorKind.RATE_LIMIT, wait_s)
        for meter in self._meters:
            meter.level -= 1 if meter.of == "requests" else tokens
        self.now += 1
        latency_s = plan.latency_s * math.exp(self._random.gauss(0.0, plan.spread))
        self.answers += 1
        self.latencies_s += latency_s
        return latency_s, Finish(advertised=self._told(), tokens=tokens)

    def answered(self) -> None:
        """What was let in has gone out."""
        self.now -= 1

    def _told(self) -> tuple[AdvertisedLimit, ...]:
        if self.plan.hints != HEADERS:
            return ()
        return tuple(meter.told() for meter in self._meters)

    def _refused(self, kind: ErrorKind, wait_s: float) -> tuple[float, Finish]:
        hint_s: float | None = wait_s
        if self.plan.hints == BARE:
            hint_s = None
        elif self.plan.hints == SECONDS:
            hint_s = max(1.0, float(math.ceil(wait_s)))
        latency_s = self.plan.refusal_s * math.exp(self._random.gauss(0.0, 0.2))
        return latency_s, Finish(kind, hint_s=hint_s, advertised=self._told(), tokens=0)
