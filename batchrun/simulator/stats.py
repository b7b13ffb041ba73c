"""What a simulated server has done, counted: by body, by second, and in all.

A completion is an answer that was made and would be billed, whether or not it arrived; one that a
fault or a lost connection kept from arriving whole is destroyed besides.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

_REQUESTS, _ADMITTED, _COMPLETIONS, _DESTROYED, _CREATED, _POLLS, _CANCELLED = range(7)
_NOTHING = [0] * 7


class Stats:
    """The counts of one server."""

    def __init__(self) -> None:
        self.completions = 0
        self._requests = 0
        self._in_flight = 0
        self._most_in_flight = 0
        self._input_tokens = 0
        self._output_tokens = 0
        self._reasoning_tokens = 0
        self._refused: Counter[str] = Counter()
        self._rejected: Counter[str] = Counter()
        self._faults: Counter[str] = Counter()
        self._destroyed: Counter[str] = Counter()
        self._background = _NOTHING.copy()  # of all bodies
        self._bodies: dict[bytes, list[int]] = {}
        self._seconds: dict[int, list[int]] = {}

    @property
    def in_flight(self) -> int:
        return self._in_flight

    def arrived(self, now_s: float) -> None:
        """A request to answer, whatever becomes of it."""
        self._requests += 1
        self._second(now_s)[0] += 1

    def asked(self, key: bytes) -> None:
        """Its body could be read."""
        self._body(key)[_REQUESTS] += 1

    def rejected(self, status: int) -> None:
        """It was wrong in itself."""
        self._rejected[str(status)] += 1

    def refused(self, limit: str, now_s: float) -> None:
        """A limit kept it out: requests, tokens, in_flight or quota."""
        self._refused[limit] += 1
        self._second(now_s)[1] += 1

    def admitted(self, key: bytes) -> int:
        """How many times that body was let in before."""
        body = self._body(key)
        body[_ADMITTED] += 1
        return body[_ADMITTED] - 1

    def met(self, fault: str) -> None:
        self._faults[fault] += 1

    def begun(self) -> Callable[[], None]:
        """In flight until what comes back is called; to call it again does nothing."""
        self._in_flight += 1
        self._most_in_flight = max(self._most_in_flight, self._in_flight)
        is_over = False

        def end() -> None:
            nonlocal is_over
            if not is_over:
                is_over = True
                self._in_flight -= 1

        return end

    def created(self, key: bytes) -> None:
        """A background response was."""
        self._count(key, _CREATED)

    def polled(self, key: bytes) -> None:
        """A background response was asked after."""
        self._count(key, _POLLS)

    def cancelled(self, key: bytes) -> None:
        """A background response was, before it was done."""
        self._count(key, _CANCELLED)

    def completed(
        self,
        key: bytes,
        tokens: tuple[int, int, int],
        now_s: float,
        destroyed_by: str | None = None,
    ) -> None:
        """An answer was made; `tokens` are those of input, output and reasoning."""
        self.completions += 1
        self._second(now_s)[2] += 1
        body = self._body(key)
        body[_COMPLETIONS] += 1
        self._input_tokens += tokens[0]
        self._output_tokens += tokens[1]
        self._reasoning_tokens += tokens[2]
        if destroyed_by:
            body[_DESTROYED] += 1
            self._destroyed[destroyed_by] += 1

    def totals(self) -> dict[str, Any]:
        """What `GET /stats` answers."""
        return {
            "requests": self._requests,
            "completions": self.completions,
            "destroyed": self._destroyed.total(),
            "destroyed_by": self._destroyed,
            "refused": self._refused,
            "rejected": self._rejected,
            "faults": self._faults,
            "bodies": len(self._bodies),
            "in_flight": self._in_flight,
            "most_in_flight": self._most_in_flight,
            "tokens": {
                "input": self._input_tokens,
                "output": self._output_tokens,
                "reasoning": self._reasoning_tokens,
            },
            "background": _background(self._background),
            "by_second": {
                str(second): {
                    "requests": counts[0],
                    "refusals": counts[1],
                    "completions": counts[2],
                }
                for second, counts in self._seconds.items()
            },
        }

    def by_body(self) -> dict[str, dict[str, Any]]:
        """What `GET /stats?by=body` answers: the SHA-256 of each body and its counts."""
        return {
            key.hex(): {
                "requests": counts[_REQUESTS],
                "completions": counts[_COMPLETIONS],
                "destroyed": counts[_DESTROYED],
                "background": _background(counts),
            }
            for key, counts in self._bodies.items()
        }

    def _count(self, key: bytes, what: int) -> None:
        self._background[what] += 1
        self._body(key)[what] += 1

    def _body(self, key: bytes) -> list[int]:
        body = self._bodies.get(key)
        if body is None:
            body = self._bodies[key] = _NOTHING.copy()
        return body

    def _second(self, now_s: float) -> list[int]:
        second = int(now_s)
        counts = self._seconds.get(second)
        if counts is None:
            counts = self._seconds[second] = [0, 0, 0]
        return counts


def _background(counts: list[int]) -> dict[str, int]:
    return {
        "created": counts[_CREATED],
        "polls": counts[_POLLS],
        "cancelled": counts[_CANCELLED],
    }
