"""What a command is doing while nothing is sent, said from a thread of its own.

Within a second of the start: on a terminal a line that changes, elsewhere a plain line every 10 s
and where something else is done.
"""

import math
import shutil
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Self, TextIO

from batchrun.formats.printable import cut, one_line

_FIRST_S = 0.8  # from the start of the process; what takes less has ended by then
_START_S = 0.7  # of it the process may have taken before it came here, at most
_PLAIN_EVERY_S = 10.0
_LOOK_EVERY_S = 0.25
_CLEAR_LINE = "\r\x1b[K"


class Planning:
    """Shows what `doing` was last given, while it is entered and until it is closed."""

    def __init__(self, stream: TextIO, *, is_quiet: bool = False, word: str = "planning") -> None:
        """`word`: what it is, in one word."""
        self._stream, self._is_quiet, self._word = stream, is_quiet, word
        self._doing = "starting"
        # What the process has worked so far, it has been there at least.
        self._began_s = time.monotonic() - min(time.process_time(), _START_S)
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._show, daemon=True)

    def __enter__(self) -> Self:
        if not self._is_quiet:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()

    def doing(self, what: str) -> None:
        """Sets what is being done now, and how far it is after a comma; from any thread."""
        self._doing = what

    def close(self) -> None:
        """Says nothing more; the line on a terminal is gone."""
        self._is_closed.set()
        if self._thread.is_alive():
            self._thread.join()

    def _show(self) -> None:
        with suppress(OSError, ValueError):  # nobody reads it, or it is closed
            if self._is_closed.wait(self._began_s + _FIRST_S - time.monotonic()):
                return
            if self._stream.isatty():
                self._show_on_terminal()
            else:
                self._show_in_lines()

    def _show_on_terminal(self) -> None:
        while True:
            columns = shutil.get_terminal_size().columns
            self._write(_CLEAR_LINE + cut(self._line(), max(20, columns - 1)))
            if self._is_closed.wait(_LOOK_EVERY_S):
                break
        self._write(_CLEAR_LINE)

    def _show_in_lines(self) -> None:
        written_s, step = -math.inf, ""
        while True:
            now_s, now = time.monotonic(), self._doing.partition(",")[0]
            if now != step or now_s - written_s >= _PLAIN_EVERY_S:
                written_s, step = now_s, now
                self._write(self._line() + "\n")
            if self._is_closed.wait(_LOOK_EVERY_S):
                break

    def _line(self) -> str:
        return one_line(f"{self._word}: {self._doing} ({time.monotonic() - self._began_s:.0f} s)")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
