"""A run as a person sees it: a bar or plain lines while it goes, and a page at its end.

What comes from rows or servers is shown harmless: no escape sequence of theirs reaches a terminal.
"""

import time
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from batchrun.report.summary import Summary

_PLAIN_EVERY_S = 30.0
_BAR_WIDTH = 30
_EXAMPLE = 200  # characters of a message


class Progress:
    """Shows summaries as they come: a bar on a terminal, elsewhere a line now and then."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._console = Console(file=stream, highlight=False, markup=False, emoji=False)
        self._live: Live | None = None
        self._said_s = 0.0
        self._state = ""

    def show(self, summary: Summary) -> None:
        try:
            self._show(summary)
        except OSError:  # nobody reads standard error any more: that must not end a paid run
            self._live = None

    def _show(self, summary: Summary) -> None:
        if summary.exit_code is not None:
            self.close()
        elif self._console.is_terminal:
            if self._live is None:
                self._live = Live(console=self._console, auto_refresh=False, transient=True)
                self._live.start()
            self._live.update(_bar(summary), refresh=True)
        else:
            self._say_plainly(summary)

    def close(self) -> None:
        """Takes the bar away; the terminal is as it was."""
        if self._live is not None:
            with suppress(OSError):
                self._live.stop()
            self._live = None

    def _say_plainly(self, summary: Summary) -> None:
        now_s = time.monotonic()
        if summary.state != self._state or now_s - self._said_s >= _PLAIN_EVERY_S:
            self._state, self._said_s = summary.state, now_s
            line = "; ".join(_facts(summary))
            self._stream.write(f"{summary.state}: {line}\n")
            self._stream.flush()


def render_end(summary: Summary, path: Path) -> str:
    """What came of it, where the tables are, and how to read them."""
    state = {"finished": "done", "stopped": "stopped early"}.get(summary.state, summary.state)
    lines = [f"{state}: {_counts(summary)}"]
    for kind, count in sorted(summary.error_kinds.items(), key=lambda item: -item[1]):
        example = " ".join(printable(summary.error_examples.get(kind, "")).split())
        shown = f", such as: {example[:_EXAMPLE]}" if example else ""
        lines.append(f"  {kind}: {count:,}{shown}")
    lines.append(
        f"  tokens: {summary.input_tokens:,} in ({summary.cached_tokens:,} cached), "
        f"{summary.output_tokens:,} out ({summary.reasoning_tokens:,} reasoning); "
        f"{summary.tool_calls:,} tool calls"
    )
    speed = f"; {summary.rows_per_s:,.1f} rows/s over {duration(summary.elapsed_s)}"
    lines.append(
        f"  attempts: {summary.attempts:,}, of them {summary.retries:,} retries"
        + (speed if summary.rows_per_s else "")
    )
    if summary.settled:
        responses = (path / "responses").as_posix()
        lines += [
            f"tables: {responses}/*.parquet, {(path / 'tool_calls').as_posix()}/*.parquet",
            f"  python -c \"import duckdb; print(duckdb.read_parquet('{responses}/*.parquet'))\"",
            f"  python -c \"import pandas; print(pandas.read_parquet('{responses}'))\"",
        ]
    if summary.message:
        lines.append(f"why: {printable(summary.message)}")
    if summary.next_command:
        lines.append(f"next: {summary.next_command}")
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """`45 s`, `12:05`, `3:07:45`."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def printable(text: str) -> str:
    """The text with control characters shown by their codes; line breaks and tabs stay."""
    return "".join(
        letter
        if letter.isprintable() or letter in "\n\t"
        else letter.encode("unicode_escape").decode()
        for letter in text
    )


def _counts(summary: Summary) -> str:
    parts = [f"{summary.settled:,} of {summary.rows:,} rows", f"{summary.ok:,} ok"]
    if summary.truncated:
        parts.append(f"{summary.truncated:,} truncated")
    if summary.refused:
        parts.append(f"{summary.refused:,} refused")
    parts += [
        f"{summary.statuses[status]:,} {status}"
        for status in ("failed", "no_answer", "cancelled", "invalid")
        if summary.statuses.get(status)
    ]
    return ", ".join(parts)


def _facts(summary: Summary) -> list[str]:
    left = "-" if summary.time_left_s is None else duration(summary.time_left_s)
    return [
        f"{summary.settled:,}/{summary.rows:,} rows",
        f"{summary.not_ok:,} not ok",
        f"{summary.retries:,} retries",
        f"{summary.in_flight:,} in flight",
        f"{summary.rows_per_s:,.1f} rows/s",
        f"tokens {_short(summary.input_tokens)} in {_short(summary.output_tokens)} out",
        f"left {left}",
    ]


def _bar(summary: Summary) -> Group:
    share = summary.settled / summary.rows if summary.rows else 1.0
    head = Table.grid(padding=(0, 1))
    head.add_row(
        Text(summary.state),
        ProgressBar(total=max(summary.rows, 1), completed=summary.settled, width=_BAR_WIDTH),
        Text(f"{share:4.0%}"),
        Text(_facts(summary)[0]),
    )
    facts = _facts(summary)[1:]
    return Group(head, Text("  " + " · ".join(facts[:3])), Text("  " + " · ".join(facts[3:])))


def _short(count: int) -> str:
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.1f}{letter}"
    return str(count)
