"""What SIGHUP, Ctrl-C and SIGTERM do to a command; one that was ignored at the start stays ignored.

No moment is a bad one: files bear a kill, so what does not listen may be ended at once.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from batchrun.runner.ending import StopSwitch

_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


class Display(Protocol):
    """What shows a run while it goes."""

    def count_down(self, seconds: float) -> None: ...
    def close(self) -> None: ...


@contextmanager
def signals_ask(
    stop: StopSwitch, display: Display, drain_s: float, say: Callable[[str], None]
) -> Iterator[None]:
    """Signals ask the run to stop, on the running loop; once it is over they are ignored."""
    import asyncio

    loop = asyncio.get_running_loop()

    def ask(number: signal.Signals) -> None:
        stop.ask(f"{number.name} came", 128 + number)
        display.close()
        times = len(stop.asked)
        if stop.is_sending:
            if times == 1:
                display.count_down(drain_s)
            say(_while_sending(times, drain_s))
        elif times <= 2:
            say("stopping" if times == 1 else "stopping: once more ends it at once")
        else:
            os._exit(128 + number)

    numbers = heard_signals()
    for number in numbers:
        loop.add_signal_handler(number, ask, number)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)  # what is left to say takes a moment


def exit_on_signals(numbers: Sequence[signal.Signals] | None = None) -> None:
    """For work that is no run: what it has begun is undone on the way out.

    `numbers`: what was heard before a run, since nothing is heard after it.
    """
    for number in heard_signals() if numbers is None else numbers:
        signal.signal(number, lambda number, _frame: sys.exit(128 + number))


def _while_sending(times: int, drain_s: float) -> str:
    if times == 1:
        wait = f"waiting for what is in flight ({drain_s:.0f} s at most)"
        return f"stopping: {wait}; once more drops it"
    return "stopping: dropping it" if times == 2 else "stopping: writing the tables"


def heard_signals() -> list[signal.Signals]:
    """Those that are not ignored."""
    return [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
