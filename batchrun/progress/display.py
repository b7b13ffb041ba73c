"""Progress while a run goes on, here or in another process: a panel on a terminal, else lines."""

import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.live import Live

from batchrun.formats.printable import one_line
from batchrun.progress.panel import limited_by, panel
from batchrun.progress.planning import Planning
from batchrun.progress.status import read_status
from batchrun.progress.summary import Summary
from batchrun.progress.summary_text import (
    oldest_in_words,
    progress_in_words,
    rows_in_words,
    time_left_in_words,
)
from batchrun.store.files import is_locked
from batchrun.store.reading import is_planning

_PLAIN_EVERY_S = 30.0
_COUNT_EVERY_S = 5.0  # while a countdown runs
_LOOK_EVERY_S = 0.5  # at a run of another process


class Progress:
    """Shows each summary that it is given."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        # Variables such as FORCE_COLOR do not make a terminal of a log.
        self._is_terminal = stream.isatty() and os.environ.get("TERM") != "dumb"
        self._console = Console(
            file=stream,
            force_terminal=self._is_terminal,
            highlight=False,
            markup=False,
            emoji=False,
        )
        self._live: Live | None = None
        self.is_closed = False  # nobody can read it any more
        self._written_s: dict[tuple[str, str | None], float] = {}  # the last line of each state
        self._drop_s: float | None = None  # when what is in flight will be dropped

    def show(self, summary: Summary) -> None:
        try:
            if summary.exit_code is not None:
                self.close()
            elif self._is_terminal:
                if self._live is None:
                    self._live = Live(console=self._console, auto_refresh=False, transient=True)
                    self._live.start()
                shown = panel(summary, self._console.width, self._countdown(summary))
                self._live.update(shown, refresh=True)
            else:
                self._write_line(summary)
        except (OSError, ValueError):  # the stream is closed, which must not end a paid run
            self._live, self.is_closed = None, True

    def count_down(self, left_s: float) -> None:
        """From now on it shows how long what is in flight may still take."""
        self._drop_s = self._clock() + left_s

    def close(self) -> None:
        """Takes the panel away; the terminal is as it was."""
        if self._live is not None:
            with suppress(OSError, ValueError):
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


def _how_far(summary: Summary) -> tuple[str, str]:
    """`4,512 of 10,000 rows`, and how much longer it takes, if that is known."""
    left = time_left_in_words(summary)
    return rows_in_words(summary), left and f"{left} left"


def _waits(summary: Summary) -> list[str]:
    """What must be done now; else the bottleneck, and the rows that are waited for."""
    if summary.message is not None:
        return [summary.message]
    words = {"limited by": limited_by(summary), "waiting for": oldest_in_words(summary)}
    return [f"{name} {what}" for name, what in words.items() if what]


def watch_run(path: Path, stream: TextIO) -> None:
    """Shows what `run` itself shows, until no process has the directory or nobody reads it.

    Raises `JobError` where it is not a run directory, `StoreError`.
    """
    progress = Progress(stream)
    try:
        while is_locked(path) and not progress.is_closed:
            if is_planning(path):
                progress.close()
                _wait_for_plan(path, stream)
            else:
                progress.show(read_status(path))
                time.sleep(_LOOK_EVERY_S)
    finally:
        progress.close()


def _wait_for_plan(path: Path, stream: TextIO) -> None:
    with Planning(stream) as said:
        said.doing("the input is read, nothing is sent yet")
        while is_locked(path) and is_planning(path):
            time.sleep(_LOOK_EVERY_S)
