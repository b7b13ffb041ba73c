"""An event loop whose clock is a number: waiting moves it on, and nothing sleeps.

Timers come late by up to `late_s` (drawn from `seed`), as on a busy machine. A loop that waits
for nothing raises, so that a waiter forgotten is an error and no hang; so does one in which a
callback failed, where other loops only print that.
"""

import asyncio
import random
import selectors
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

T = TypeVar("T")
FIRST_S = 1000.0  # the time to begin with
_LEAST_S = 1e-9  # what a wait moves the time on by, whatever floats can tell apart


class _Clock(selectors.BaseSelector):
    """Waits by moving the time on; no file ever becomes ready."""

    def __init__(self, seed: int, late_s: float) -> None:
        self.now_s = FIRST_S
        self._late_s = late_s
        self._draw = random.Random(seed).random
        self._keys: dict[Any, selectors.SelectorKey] = {}
        self._error: BaseException | None = None

    def fail(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self._error = context.get("exception") or RuntimeError(context["message"])

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        if timeout is None:
            raise RuntimeError("everybody waits, and nothing will ever happen")
        if timeout > 0:
            self.now_s += max(timeout, _LEAST_S) + self._late_s * self._draw()
        return []

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        key = selectors.SelectorKey(fileobj, 0, events, data)
        self._keys[fileobj] = key
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._keys.pop(fileobj)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._keys


class VirtualLoop(asyncio.SelectorEventLoop):
    """A selector loop on a virtual clock."""

    def __init__(self, seed: int = 0, late_s: float = 0.0) -> None:
        self._virtual = _Clock(seed, late_s)
        super().__init__(self._virtual)
        self.set_exception_handler(self._virtual.fail)

    def time(self) -> float:
        return self._virtual.now_s


def run(main: Coroutine[Any, Any, T], *, seed: int = 0, late_s: float = 0.0) -> T:
    """What `main` returns, in virtual time."""
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(seed, late_s)) as runner:
        return runner.run(main)
