"""Servers drawn at random, and how a run did against each.

A server limits requests, tokens, both, or requests in flight:

- 50 in 100: a bucket of requests, 4 to 160 a second; 10: a fixed window of 1 to 20 s that holds 40
  requests at least, told in headers or hinted exactly
- 15: a bucket of tokens, told in headers; 10: both, told in headers, one of them clearly tighter
- 15: 4 to 300 requests in flight, else 503

Rates lie evenly on a logarithmic scale, as does all else that has a range: latencies from 0.05 to
20 s (0.3 s at least where it is the requests in flight that are limited), with a spread of 0.1 to
0.6 (sigma of the logarithm); bursts from 3 requests (20 where tokens are limited, since one request
may be as large as several) to 10 s of the limit; refusals are back after 0.02 to 0.5 s, requests
arrive up to 5 ms late. A quarter each tells headers and exact hints, exact hints alone, whole
seconds in Retry-After alone, nothing. Who answers in whole seconds holds a second of the limit at
least: a server that holds less, and says "1 s" when it means 5 ms, costs a second for each probe,
so that finding its limit and keeping to it exclude each other.

A run has 10,000 requests, of up to 1,000 in flight, and ends after 180 s; the fastest servers are
such that it lasts a minute at least. Of the buckets and the requests in flight that last two
minutes, 60 in 100 change their limit once, 45 to 55 s after the start, to 0.4 to 2.5 times of it;
only downwards where each probe costs a second or there are less than ten answers a second, since a
rise is found there within a minute, not within 30 s. Requests with tokens have lognormal sizes
(sigma 0.2 to 0.9), and reserve 1 to 2 times what they use.
"""

import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from tests.pacing.client import Traffic, play
from tests.pacing.server_model import BARE, HEADERS, MESSAGE, SECONDS, Plan, Server

ROWS = 10_000
MOST = 1_000  # in flight
SETTLE_S = 30.0  # after the start, and after each change
LASTS_S = 180.0
TIMEOUT_S = 600.0
_SHORT_S = 20.0  # a span below it is too short to measure

_KINDS = ("requests", "window", "tokens", "both", "in_flight")
_SHARES = (50, 10, 15, 10, 15)


@dataclass(frozen=True)
class Case:
    """One server, and what is asked of it."""

    plan: Plan
    rows: tuple[tuple[int, int], ...]
    until_s: float
    seed: int
    mean_tokens: float

    def allowed(self, latency_s: float, factor: float) -> float:
        """Requests a second."""
        plan = self.plan
        rates = [MOST / latency_s]
        if plan.requests is not None:
            rates.append(plan.requests * factor)
        if plan.tokens is not None:
            rates.append(plan.tokens * factor / self.mean_tokens)
        if plan.in_flight is not None:
            rates.append(max(1, int(plan.in_flight * factor)) / latency_s)
        return min(rates)

    def good(self, traffic: Traffic, from_s: float, until_s: float) -> float:
        """Requests let in; where tokens limit, in requests of the mean size."""
        plan = self.plan
        if plan.tokens is None or plan.tokens / self.mean_tokens > (plan.requests or math.inf):
            return traffic.between(traffic.accepted, from_s, until_s)
        return traffic.between(traffic.tokens, from_s, until_s) / self.mean_tokens


@dataclass(frozen=True)
class Result:
    """Shares, over the time that is measured."""

    goodput: float
    refused: float
    measured_s: float


def _log(draw: random.Random, low: float, high: float) -> float:
    return math.exp(draw.uniform(math.log(low), math.log(high)))


def draw_case(seed: int) -> Case:
    draw = random.Random(seed)
    kind = draw.choices(_KINDS, _SHARES)[0]
    rate = _log(draw, 4, 160)
    latency_s = _log(draw, 0.05, 20)
    sigma = draw.uniform(0.2, 0.9)
    has_tokens = kind in {"tokens", "both"}
    burst_s = max((20 if has_tokens else 3) / rate, _log(draw, 0.02, 10))
    hints = draw.choice((HEADERS, MESSAGE, SECONDS, BARE))
    requests: float | None = rate
    tokens: float | None = None
    in_flight: int | None = None
    window_s: float | None = None
    if kind == "window":
        hints = draw.choice((HEADERS, MESSAGE))
        window_s = max(_log(draw, 1, 20), 40 / rate)
        requests = round(rate * window_s) / window_s
    elif has_tokens:
        hints = HEADERS
        tokens = rate * 1000 * math.exp(sigma**2 / 2)
        if kind == "tokens":
            requests = None
        else:
            tokens *= draw.choice((0.6, 2.0))
    elif kind == "in_flight":
        requests, in_flight = None, round(_log(draw, 4, 300))
        latency_s = min(max(latency_s, 0.3, in_flight / 160), in_flight / 4)
        rate = in_flight / latency_s
    if hints == SECONDS:
        burst_s = max(burst_s, 1.0)
    until_s = min(LASTS_S, 0.98 * ROWS / rate)
    changes: tuple[tuple[float, float], ...] = ()
    if until_s >= 120 and window_s is None and draw.random() < 0.6:
        is_cheap = hints != SECONDS if in_flight is None else hints == BARE and rate > 10
        changes = ((draw.uniform(45, 55), _log(draw, 0.4, 2.5 if is_cheap else 1.0)),)
    plan = Plan(
        requests=requests,
        tokens=tokens,
        burst_s=burst_s,
        window_s=window_s,
        in_flight=in_flight,
        latency_s=latency_s,
        spread=draw.uniform(0.1, 0.6),
        refusal_s=_log(draw, 0.02, 0.5),
        hints=hints,
        jitter_s=draw.uniform(0.0, 0.005),
        changes=changes,
    )
    rows = tuple(_rows(draw, sigma)) if has_tokens else ((0, 0),) * ROWS
    mean_tokens = sum(used for _, used in rows) / ROWS
    return Case(plan, rows, until_s, seed, mean_tokens)


def _rows(draw: random.Random, sigma: float) -> Iterator[tuple[int, int]]:
    for _ in range(ROWS):
        used = max(1, int(1000 * math.exp(draw.gauss(0, sigma))))
        yield int(used * draw.uniform(1.0, 2.0)), used


def measure(case: Case, *, adapts: bool = False) -> Result:
    """How the run did where it had time to settle; `adapts`: with `--concurrency auto`."""
    plan = case.plan
    server = Server(plan, case.seed)
    traffic = play(
        server,
        case.rows,
        most=MOST,
        until_s=case.until_s,
        seed=case.seed,
        adapts_to_s=TIMEOUT_S if adapts else None,
    )
    latency_s = server.latencies_s / max(1, server.answers)
    edges = [0.0, *(at_s for at_s, _ in plan.changes), traffic.full_s]
    good = could = measured_s = 0.0
    taken = refused = 0
    for begin_s, end_s in itertools.pairwise(edges):
        step_s = plan.window_s or traffic.span_s
        from_s = math.ceil((begin_s + max(SETTLE_S, 2 * (plan.window_s or 0))) / step_s) * step_s
        until_s = math.floor(end_s / step_s) * step_s
        if until_s - from_s < max(_SHORT_S, 3 * plan.latency_s):
            continue
        measured_s += until_s - from_s
        taken += traffic.between(traffic.accepted, from_s, until_s)
        refused += traffic.between(traffic.refused, from_s, until_s)
        good += case.good(traffic, from_s, until_s)
        could += case.allowed(latency_s, plan.factor(begin_s)) * (until_s - from_s)
    goodput = good / could if could else 1.0
    return Result(goodput, refused / max(taken + refused, 1), measured_s)
