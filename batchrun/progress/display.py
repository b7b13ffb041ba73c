"""A run as a person sees it: a bar or plain lines while it goes, and a page at its end.

What comes from rows or servers is shown harmless: no escape sequence of theirs reaches a terminal.
"""

import math
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from batchrun.formats.amounts import (
    duration,
    plural,
    seconds,
    short_count,
    usd,
)
from batchrun.formats.printable import one_line, printable
from batchrun.progress.summary import Summary
from batchrun.records import FAILED

_PLAIN_EVERY_S = 30.0
_COUNT_EVERY_S = 5.0  # while a countdown runs
_BAR_WIDTH = 24
_EXAMPLE = 200  # characters of a message
_ID = 60  # characters of a row's id


class Progress:
    """Shows summaries as they come: a bar on a terminal, elsewhere a line now and then."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._console = Console(file=stream, highlight=False, markup=False, emoji=False)
        self._live: Live | None = None
        self._said_s = -math.inf  # the last plain line
        self._said_of: dict[tuple[str, str | None], float] = {}  # when a state was said last
        self._drop_s: float | None = None  # when what is in flight will be dropped
        self._state: tuple[str, str | None] = ("", None)

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
            self._live.update(_bar(summary, self._left(summary)), refresh=True)
        else:
            self._say_plainly(summary)

    def count_down(self, left_s: float) -> None:
        """From now on it is said how long what is in flight has left to land."""
        self._drop_s = self._clock() + left_s

    def close(self) -> None:
        """Takes the bar away; the terminal is as it was."""
        if self._live is not None:
            with suppress(OSError):
                self._live.stop()
            self._live = None

    def _say_plainly(self, summary: Summary) -> None:
        """One line every 30 s and at each change of state, no state twice in that time."""
        now_s = self._clock()
        state = (summary.state, summary.paused_by)
        left = self._left(summary)
        every_s = _COUNT_EVERY_S if left else _PLAIN_EVERY_S
        is_new = state != self._state
        if now_s - (self._said_of.get(state, -math.inf) if is_new else self._said_s) >= every_s:
            self._state, self._said_s, self._said_of[state] = state, now_s, now_s
            line = left or one_line("; ".join(_plain_facts(summary)))
            self._stream.write(f"{summary.state}: {line}\n")
            self._stream.flush()

    def _left(self, summary: Summary) -> str | None:
        """`3 in flight, 17 s left; Ctrl-C again drops them`; null while nothing is dropped."""
        if self._drop_s is None or summary.state != "stopping":
            return None
        left_s = max(0.0, self._drop_s - self._clock())
        return f"{summary.in_flight:,} in flight, {left_s:.0f} s left; Ctrl-C again drops them"


def render_end(summary: Summary, path: Path) -> str:
    """What came of it, where the tables are, and how to read them."""
    state = {"finished": "done", "stopped": "stopped early"}.get(summary.state, summary.state)
    lines = [f"{state}: {_counts(summary)}"]
    for kind, count in sorted(summary.error_kinds.items(), key=lambda item: -item[1]):
        example = " ".join(summary.error_examples.get(kind, "").split())
        shown = f", such as: {example[:_EXAMPLE]}" if example else ""
        lines.append(f"  {kind}: {count:,}{shown}")
    lines.append(
        f"  tokens: {summary.input_tokens:,} in ({summary.cached_tokens:,} cached), "
        f"{summary.output_tokens:,} out ({summary.reasoning_tokens:,} reasoning)"
        f"{of_answers_that_count(summary)}; {summary.tool_calls:,} tool calls"
    )
    speed = f"; {summary.rows_per_s:,.1f} rows/s over {duration(summary.elapsed_s)}"
    lines.append(f"  attempts: {tries_in_words(summary)}" + (speed if summary.rows_per_s else ""))
    if (cost := cost_in_words(summary)) is not None:
        lines.append(f"  cost: {cost}")
    if summary.settled:
        responses = (path / "responses").as_posix()
        lines += [
            f"tables: {responses}/*.parquet, {(path / 'tool_calls').as_posix()}/*.parquet",
            f"  python -c \"import duckdb; print(duckdb.read_parquet('{responses}/*.parquet'))\"",
            f"  python -c \"import pandas; print(pandas.read_parquet('{responses}'))\"",
        ]
    if summary.message:
        is_limit = summary.state == "limited"
        lines.append(summary.message if is_limit else f"why: {summary.message}")
    if summary.next_command:
        lines.append(f"next: {summary.next_command}")
    return printable("\n".join(lines))


def tries_in_words(summary: Summary) -> str:
    """`1,319, of them 12 retries, 3 reasks`; where rows are left, those of settled rows alone."""
    whose = " of settled rows" if summary.left else ""
    kinds = {"reasks": summary.reasks, "hedges": summary.hedges, "resent": summary.resent}
    named = [f"{summary.retries:,} retries"]
    named += [f"{count:,} {kind}" for kind, count in kinds.items() if count]
    more = f"; {summary.more_tries:,} more by rows not settled yet" if summary.more_tries else ""
    return f"{summary.attempts:,}{whose}, of them {', '.join(named)}{more}"


def of_answers_that_count(summary: Summary) -> str:
    """What tokens are counted of, where the cost takes in others."""
    others = summary.reasks + summary.hedges + summary.resent
    return ", of the answers that count" if others else ""


def cost_in_words(summary: Summary) -> str | None:
    """What the run directory has cost, and what of it nobody knows; null where nothing was sent."""
    parts = []
    if summary.cost_usd is not None:
        parts.append(usd(summary.cost_usd))
    if count := summary.unknown_attempts:
        why = "they ended without a count of tokens"
        if summary.unpriced_model is not None:
            model = one_line(summary.unpriced_model)
            why = (
                f'no price for {model}; batchrun cost reckons it once [pricing."{model}"] '
                "stands in ~/.config/batchrun/prices.toml"
            )
        which = f"{plural(count, 'attempt')}{' of unknown cost' if parts else ''} ({why})"
        parts.append(f"{'without' if parts else 'unknown for'} {which}")
    if summary.unfinished:
        answers = "an answer" if summary.unfinished == 1 else f"{summary.unfinished:,} answers"
        plus = "plus " if parts else ""
        whose = "a row" if summary.unfinished == 1 else "rows"
        paid = usd(summary.unfinished_usd)
        parts.append(f"{plus}{paid} for {answers} of {whose} without an outcome")
    if summary.unknown_usd:
        parts.append(f"up to {usd(summary.unknown_usd)} for tries that never told what they cost")
    if not parts:
        return None
    return ", ".join(parts) + ("; simulated, so nothing is paid" if summary.simulated else "")


def _counts(summary: Summary) -> str:
    of = max(summary.rows, summary.source_rows)
    parts = [f"{summary.settled:,} of {of:,} rows", f"{summary.ok:,} ok"]
    return ", ".join([*parts, *not_ok_in_words(summary)])


def not_ok_in_words(summary: Summary) -> list[str]:
    """`53 truncated`, `27 refused`, `14 incomplete`, `42 failed`: all rows that are not ok."""
    statuses = {status: summary.statuses.get(status, 0) for status in (*FAILED, "invalid")}
    # Cut off for another reason than their length, as by a content filter.
    rest = summary.not_ok - summary.truncated - summary.refused - sum(statuses.values())
    counts = {
        "truncated": summary.truncated,
        "refused": summary.refused,
        "incomplete": rest,
        **statuses,
    }
    return [f"{count:,} {what}" for what, count in counts.items() if count > 0]


def _progress(summary: Summary) -> str:
    """`4,512/10,000 rows`."""
    return f"{summary.settled:,}/{summary.rows:,} rows"


def _outcomes(summary: Summary) -> list[str]:
    """What has become of the rows, and what of them is under way."""
    facts = [f"{summary.ok:,} ok", *not_ok_in_words(summary)]
    if summary.retrying:
        facts.append(f"{summary.retrying:,} retrying")
    most = "" if summary.most_in_flight is None else f"/{summary.most_in_flight:,}"
    again = summary.retries + summary.reasks + summary.hedges + summary.resent
    facts.append(f"{again + summary.more_tries:,} tried again")
    return [*facts, f"{summary.in_flight:,}{most} in flight"]


def speed_in_words(summary: Summary) -> list[str]:
    """How fast it goes, and how fast limits would let it go."""
    facts = [
        _at_most(summary.requests_per_s, summary.most_requests_per_s, "requests/s"),
        _at_most(summary.tokens_per_s, summary.most_tokens_per_s, "tokens/s"),
    ]
    if summary.p50_s is not None and summary.p99_s is not None:
        facts.append(f"p50 {seconds(summary.p50_s)}, p99 {seconds(summary.p99_s)}")
    return facts


def _money(summary: Summary) -> list[str]:
    if summary.cost_usd is None or summary.simulated:
        return []
    facts = [f"{usd(summary.cost_usd)} spent"]
    if summary.projected_usd is not None and summary.settled < summary.rows:
        facts.append(f"about {usd(summary.projected_usd)} in all")
    if summary.cap_usd is not None:
        facts.append(f"cap {usd(summary.cap_usd)}")
    return facts


def _time_left(summary: Summary) -> str:
    return "left " + ("-" if summary.time_left_s is None else duration(summary.time_left_s))


def _errors(summary: Summary) -> list[str]:
    """`errors: timeout 12, rate_limit 3`: those that rows have ended with."""
    kinds = sorted(summary.error_kinds.items(), key=lambda item: -item[1])
    return ["errors: " + ", ".join(f"{kind} {count:,}" for kind, count in kinds)] if kinds else []


def _at_most(now: float, most: float | None, unit: str) -> str:
    limit = "" if most is None else f" of {short_count(most)}"
    return f"{short_count(now)}{limit} {unit}"


def oldest_in_words(summary: Summary) -> str:
    """`waiting for 3 rows, the oldest 412 s: id-7, id-9, id-12`."""
    left = plural(summary.rows - summary.settled, "row")
    names = ", ".join(one_line(named[:_ID]) for named, _ in summary.oldest)
    return f"waiting for {left}, the oldest {summary.oldest[0][1]:.0f} s: {names}"


def _bar(summary: Summary, left: str | None) -> Group:
    share = summary.settled / summary.rows if summary.rows else 1.0
    head = Table.grid(padding=(0, 1))
    head.add_row(
        Text(summary.state),
        ProgressBar(total=max(summary.rows, 1), completed=summary.settled, width=_BAR_WIDTH),
        Text(f"{share:4.0%}"),
        Text(_progress(summary)),
        Text(_time_left(summary)),
    )
    facts = (_outcomes(summary), speed_in_words(summary), _money(summary), _errors(summary))
    lines = [" · ".join(some) for some in facts if some]
    lines += [one_line(line) for line in ([left] if left else _waits(summary))]
    fits = summary.message is None  # what a user must do is shown whole
    return Group(head, *(Text("  " + line, overflow="ellipsis", no_wrap=fits) for line in lines))


def _plain_facts(summary: Summary) -> list[str]:
    facts = (_outcomes(summary), speed_in_words(summary), _money(summary), _errors(summary))
    return [
        ", ".join(some)
        for some in ([_progress(summary)], [_time_left(summary)], *facts, _waits(summary))
        if some
    ]


def _waits(summary: Summary) -> list[str]:
    """What must be done now; else what binds, and the rows that are waited for."""
    if summary.message is not None:
        return [summary.message]
    has_begun = summary.settled or summary.in_flight or summary.paused_by
    waits = [f"held by {summary.binds}"] if summary.binds and has_begun else []
    return [*waits, oldest_in_words(summary)] if summary.oldest else waits
