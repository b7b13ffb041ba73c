"""Progress while a run goes on: a bar on a terminal, elsewhere plain lines."""

import math
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from batchrun.formats.amounts import duration
from batchrun.formats.printable import one_line
from batchrun.progress.summary import Summary
from batchrun.progress.summary_text import oldest_in_words, progress_in_words

_PLAIN_EVERY_S = 30.0
_COUNT_EVERY_S = 5.0  # while a countdown runs
_BAR_WIDTH = 24


class Progress:
    """Shows each summary that it is given."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._console = Console(file=stream, highlight=False, markup=False, emoji=False)
        self._live: Live | None = None
        self._written_s: dict[tuple[str, str | None], float] = {}  # the last line of each state
        self._drop_s: float | None = None  # when what is in flight will be dropped

    def show(self, summary: Summary) -> None:
        try:
            if summary.exit_code is not None:
                self.close()
            elif self._console.is_terminal:
                if self._live is None:
                    self._live = Live(console=self._console, auto_refresh=False, transient=True)
                    self._live.start()
                self._live.update(_bar(summary, self._countdown(summary)), refresh=True)
            else:
                self._write_line(summary)
        except OSError:  # standard error is closed, which must not end a paid run
            self._live = None

    def count_down(self, left_s: float) -> None:
        """From now on it shows how long what is in flight may still take."""
        self._drop_s = self._clock() + left_s

    def close(self) -> None:
        """Takes the bar away; the terminal is as it was."""
        if self._live is not None:
            with suppress(OSError):
                self._live.stop()
            self._live = None

    def _write_line(self, summary: Summary) -> None:
        """One line every 30 s and at each change of state, no state twice in that time."""
        now_s, state = self._clock(), (summary.state, summary.paused_by)
        countdown = self._countdown(summary)
        every_s = _COUNT_EVERY_S if countdown else _PLAIN_EVERY_S
        if now_s - self._written_s.get(state, -math.inf) >= every_s:
            self._written_s[state] = now_s
            facts = map(", ".join, progress_in_words(summary))
            line = "; ".join(filter(None, (*_how_far(summary), *facts, *_waits(summary))))
            self._stream.write(f"{summary.state}: {countdown or one_line(line)}\n")
            self._stream.flush()

    def _countdown(self, summary: Summary) -> str | None:
        """`3 in flight, 17 s left; Ctrl-C again drops them`; None while nothing is dropped."""
        if self._drop_s is None or summary.state != "stopping":
            return None
        left_s = max(0.0, self._drop_s - self._clock())
        return f"{summary.in_flight:,} in flight, {left_s:.0f} s left; Ctrl-C again drops them"


def _bar(summary: Summary, countdown: str | None) -> Group:
    share = summary.settled / summary.rows if summary.rows else 1.0
    head = Table.grid(padding=(0, 1))
    head.add_row(
        Text(summary.state),
        ProgressBar(total=max(summary.rows, 1), completed=summary.settled, width=_BAR_WIDTH),
        Text(f"{share:4.0%}"),
        *map(Text, _how_far(summary)),
    )
    lines = [" · ".join(some) for some in progress_in_words(summary)]
    lines += [one_line(line) for line in ([countdown] if countdown else _waits(summary))]
    is_cut = summary.message is None  # what a user must do is shown whole
    return Group(head, *(Text("  " + line, overflow="ellipsis", no_wrap=is_cut) for line in lines))


def _how_far(summary: Summary) -> tuple[str, str]:
    """`4,512/10,000 rows`, and how much longer it takes, if that is known."""
    left = "" if summary.time_left_s is None else f"{duration(summary.time_left_s)} left"
    return f"{summary.settled:,}/{summary.rows:,} rows", left


def _waits(summary: Summary) -> list[str]:
    """What must be done now; else the bottleneck, and the rows that are waited for."""
    if summary.message is not None:
        return [summary.message]
    has_begun = summary.settled or summary.in_flight or summary.paused_by
    binds = f"limited by {summary.binds}" if summary.binds and has_begun else ""
    return list(filter(None, (binds, oldest_in_words(summary))))
