"""What a simulated server has done, counted: by body, by second, and in all.

A completion is an answer that was made and would be billed, whether or not it arrived; one that did
not arrive whole, because of a fault or a lost connection, is also counted as destroyed.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

from msgspec import Struct


class _SecondCounts(Struct, gc=False):
    requests: int = 0
    refusals: int = 0
    completions: int = 0


class _BodyCounts(Struct, gc=False):
    requests: int = 0
    admitted: int = 0
    answers: int = 0  # begun, whether or not they were completed
    completions: int = 0
    destroyed: int = 0
    created: int = 0
    polls: int = 0
    cancelled: int = 0

    def background(self) -> dict[str, int]:
        return {"created": self.created, "polls": self.polls, "cancelled": self.cancelled}


class Stats:
    """The counts of one server."""

    def __init__(self) -> None:
        self.completions = 0
        self.in_flight = 0
        self._most_in_flight = 0
        self._requests = 0
        self._tokens = {"input": 0, "output": 0, "reasoning": 0}
        self._refused: Counter[str] = Counter()
        self._rejected: Counter[str] = Counter()
        self._faults: Counter[str] = Counter()
        self._destroyed: Counter[str] = Counter()
        self._background = _BodyCounts()  # of all bodies
        self._bodies: defaultdict[bytes, _BodyCounts] = defaultdict(_BodyCounts)
        self._seconds: defaultdict[int, _SecondCounts] = defaultdict(_SecondCounts)

    def arrived(self, now_s: float) -> None:
        """A request for an answer, whatever becomes of it."""
        self._requests += 1
        self._seconds[int(now_s)].requests += 1

    def read(self, key: bytes) -> None:
        """Its body could be read."""
        self._bodies[key].requests += 1

    def rejected(self, status: int) -> None:
        """It was wrong in itself."""
        self._rejected[str(status)] += 1

    def refused(self, limit: str, now_s: float) -> None:
        """A limit refused it: requests, tokens, in_flight or quota."""
        self._refused[limit] += 1
        self._seconds[int(now_s)].refusals += 1

    def admitted(self, key: bytes) -> int:
        """How many times that body was let in before."""
        body = self._bodies[key]
        body.admitted += 1
        return body.admitted - 1

    def answered(self, key: bytes) -> int:
        """How many answers to that body were made before this one."""
        body = self._bodies[key]
        body.answers += 1
        return body.answers - 1

    def faulted(self, fault: str) -> None:
        """The attempt gets this fault."""
        self._faults[fault] += 1

    def begun(self) -> Callable[[], None]:
        """In flight until the function returned is called; to call it again does nothing."""
        self.in_flight += 1
        self._most_in_flight = max(self._most_in_flight, self.in_flight)
        is_over = False

        def end() -> None:
            nonlocal is_over
            if not is_over:
                is_over = True
                self.in_flight -= 1

        return end

    def created(self, key: bytes) -> None:
        """A background response was."""
        for counts in (self._background, self._bodies[key]):
            counts.created += 1

    def polled(self, key: bytes) -> None:
        """A background response was asked for."""
        for counts in (self._background, self._bodies[key]):
            counts.polls += 1

    def cancelled(self, key: bytes) -> None:
        """A background response was, before it was done."""
        for counts in (self._background, self._bodies[key]):
            counts.cancelled += 1

    def completed(
        self,
        key: bytes,
        tokens: tuple[int, int, int],
        now_s: float,
        destroyed_by: str | None = None,
    ) -> None:
        """An answer was made; `tokens` are those of input, output and reasoning."""
        self.completions += 1
        self._seconds[int(now_s)].completions += 1
        body = self._bodies[key]
        body.completions += 1
        for name, count in zip(self._tokens, tokens, strict=True):
            self._tokens[name] += count
        if destroyed_by:
            body.destroyed += 1
            self._destroyed[destroyed_by] += 1

    def totals(self) -> dict[str, Any]:
        """The answer to `GET /stats`."""
        return {
            "requests": self._requests,
            "completions": self.completions,
            "destroyed": self._destroyed.total(),
            "destroyed_by": self._destroyed,
            "refused": self._refused,
            "rejected": self._rejected,
            "faults": self._faults,
            "bodies": len(self._bodies),
            "in_flight": self.in_flight,
            "most_in_flight": self._most_in_flight,
            "tokens": self._tokens,
            "background": self._background.background(),
            "by_second": self._seconds,
        }

    def by_body(self) -> dict[str, dict[str, Any]]:
        """The answer to `GET /stats?by=body`: the SHA-256 of each body and its counts."""
        return {
            key.hex(): {
                "requests": counts.requests,
                "completions": counts.completions,
                "destroyed": counts.destroyed,
                "background": counts.background(),
            }
            for key, counts in self._bodies.items()
        }


class Delivery:
    """One request in flight and the answer made for it: each counted once, however it ends."""

    def __init__(self, stats: Stats, key: bytes) -> None:
        self.key = key
        self._stats = stats
        self.end = stats.begun()  # no longer in flight; later calls do nothing
        self.billed: tuple[int, int, int] | None = None  # tokens, once there is an answer
        self.is_counted = False

    def count(self, destroyed_by: str | None = None) -> None:
        """The answer is made, and billed; later calls count nothing."""
        self.is_counted = True
        tokens, self.billed = self.billed, None
        if tokens is not None:
            self._stats.completed(self.key, tokens, time.time(), destroyed_by)

    def finish(self, destroyed_by: str | None = None) -> None:
        """The answer is made, and no longer in flight."""
        self.count(destroyed_by)
        self.end()
