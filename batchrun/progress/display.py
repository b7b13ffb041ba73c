"""Progress while a run goes on: a bar on a terminal, elsewhere plain lines."""

import math
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from batchrun.formats.amounts import duration, usd
from batchrun.formats.printable import one_line
from batchrun.progress.summary import Summary
from batchrun.progress.summary_text import not_ok_in_words, oldest_in_words, speed_in_words

_PLAIN_EVERY_S = 30.0
_COUNT_EVERY_S = 5.0  # while a countdown runs
_BAR_WIDTH = 24


class Progress:
    """Shows each summary that it is given."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._console = Console(file=stream, highlight=False, markup=False, emoji=False)
        self._live: Live | None = None
        self._written_s = -math.inf  # the last plain line
        self._state: tuple[str, str | None] = ("", None)  # that it showed
        self._state_s: dict[tuple[str, str | None], float] = {}  # when each was written last
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
        now_s = self._clock()
        state = (summary.state, summary.paused_by)
        countdown = self._countdown(summary)
        every_s = _COUNT_EVERY_S if countdown else _PLAIN_EVERY_S
        is_new = state != self._state
        since_s = self._state_s.get(state, -math.inf) if is_new else self._written_s
        if now_s - since_s >= every_s:
            self._state, self._written_s, self._state_s[state] = state, now_s, now_s
            facts = [_rows(summary), _time_left(summary), *map(", ".join, _facts(summary))]
            line = "; ".join(filter(None, (*facts, *_waits(summary))))
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
        Text(_rows(summary)),
        Text(_time_left(summary)),
    )
    lines = [" · ".join(some) for some in _facts(summary)]
    lines += [one_line(line) for line in ([countdown] if countdown else _waits(summary))]
    is_cut = summary.message is None  # what a user must do is shown whole
    return Group(head, *(Text("  " + line, overflow="ellipsis", no_wrap=is_cut) for line in lines))


def _rows(summary: Summary) -> str:
    return f"{summary.settled:,}/{summary.rows:,} rows"


def _time_left(summary: Summary) -> str:
    return "" if summary.time_left_s is None else f"{duration(summary.time_left_s)} left"


def _facts(summary: Summary) -> list[list[str]]:
    """What the lines of the bar say."""
    most = "" if summary.most_in_flight is None else f"/{summary.most_in_flight:,}"
    extra = summary.retries + summary.reasks + summary.hedges + summary.resent + summary.more_tries
    outcomes = [f"{summary.ok:,} ok", *not_ok_in_words(summary)]
    if summary.retrying:
        outcomes.append(f"{summary.retrying:,} waiting for a retry")
    outcomes += [f"{extra:,} extra attempts", f"{summary.in_flight:,}{most} in flight"]
    money = []
    if summary.cost_usd is not None and not summary.simulated:
        money.append(f"{usd(summary.cost_usd)} spent")
        if summary.projected_usd is not None and summary.settled < summary.rows:
            money.append(f"about {usd(summary.projected_usd)} in all")
        if summary.cap_usd is not None:
            money.append(f"cap {usd(summary.cap_usd)}")
    kinds = Counter(summary.error_kinds).most_common()
    errors = ", ".join(f"{kind} {count:,}" for kind, count in kinds)
    facts = [outcomes, speed_in_words(summary), money, [f"errors ({errors})"] if errors else []]
    return [some for some in facts if some]


def _waits(summary: Summary) -> list[str]:
    """What must be done now; else the bottleneck, and the rows that are waited for."""
    if summary.message is not None:
        return [summary.message]
    has_begun = summary.settled or summary.in_flight or summary.paused_by
    waits = [f"limited by {summary.binds}"] if summary.binds and has_begun else []
    return [*waits, oldest_in_words(summary)] if summary.oldest else waits
