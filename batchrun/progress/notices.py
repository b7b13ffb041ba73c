"""What somebody who is not there is told of a command, and when. No I/O.

Its end; that nothing was completed for ten minutes, and that it goes on; that most of a budget is
spent.
"""

import shlex
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from msgspec import Struct

from batchrun.errors import BatchrunError
from batchrun.formats.amounts import duration, plural, usd
from batchrun.formats.printable import brief, printable, shell_command
from batchrun.limits.budget import Budget
from batchrun.progress.summary import Summary
from batchrun.progress.summary_text import (
    cost_in_words,
    next_in_words,
    not_ok_in_words,
    rows_in_words,
)

STALL_S = 600.0  # without a completed row
_BUDGET_SHARE = 0.8
_WHY = 500  # characters of a reason
_STATES = {"limited": "finished as far as was asked", "stopped": "stopped early"}


Kind = Literal["info", "success", "warning", "failure"]  # the words of apprise


class Notice(Struct, frozen=True):
    """One message."""

    title: str
    body: str
    kind: Kind


class Notices:
    """What there is to tell while a command sends; each once."""

    def __init__(self, stall_s: float = STALL_S) -> None:
        self._stall_s = stall_s
        self._completed: int | None = None  # rows, when it was last looked
        self._moved_s = 0.0  # when there was another one
        self._is_stalled = False
        self._told_of: set[str] = set()  # caps

    def look(self, summary: Summary, budgets: Sequence[Budget], now_s: float) -> Iterator[Notice]:
        """What there is to tell now."""
        look = _next(shlex.join(["batchrun", "status", summary.run]))
        if summary.settled != self._completed:
            if self._is_stalled:
                still = duration(now_s - self._moved_s)
                why = f"A row was completed, after {still} without one."
                yield _notice(summary, "continues", (why, *_counts(summary), look), "info")
            self._completed, self._moved_s, self._is_stalled = summary.settled, now_s, False
        elif not self._is_stalled and now_s - self._moved_s >= self._stall_s:
            self._is_stalled = True
            why = f"No row was completed for {duration(now_s - self._moved_s)}."
            waits = f"limited by: {brief(summary.binds or 'unknown', _WHY)}"
            yield _notice(summary, "is stalled", (why, waits, *_counts(summary), look), "warning")
        for budget in budgets:
            spent_usd = budget.spent_usd + budget.unknown_usd
            is_near = budget.cap_usd > 0 and spent_usd >= _BUDGET_SHARE * budget.cap_usd
            if is_near and budget.option not in self._told_of:
                self._told_of.add(budget.option)
                what = f"has spent {spent_usd / budget.cap_usd:.0%} of {budget.option}"
                of = f"{usd(spent_usd)} of {usd(budget.cap_usd)} ({budget.option}) are spent."
                yield _notice(summary, what, (of, *_counts(summary), look), "warning")


def of_end(summary: Summary) -> Notice:
    """How the command ended."""
    state = _STATES.get(summary.state, summary.state)
    how = "all rows are ok"
    if summary.not_ok:
        how = f"{plural(summary.not_ok, 'row')} {'is' if summary.not_ok == 1 else 'are'} not ok"
    title = f"{state}: {how}" if summary.exit_code in (0, 4) else state
    lines = [f"state: {state} (exit code {summary.exit_code})", *_counts(summary)]
    if summary.left:
        lines.append(f"remaining: {summary.left:,}")
    if summary.message:
        lines.append(f"why: {brief(summary.message, _WHY)}")
    lines += next_in_words(summary)
    kinds: dict[int | None, Kind] = {0: "success", 1: "failure"}
    return _notice(summary, title, lines, kinds.get(summary.exit_code, "warning"))


def of_refusal(run: str, error: BaseException, command: str | None) -> Notice:
    """That a command ended before it sent anything."""
    exit_code = error.exit_code if isinstance(error, BatchrunError) else 1
    said = str(error) if isinstance(error, BatchrunError) else f"{type(error).__name__}: {error}"
    lines = [f"run: {run}", f"state: nothing was sent (exit code {exit_code})"]
    lines.append(f"why: {brief(said, _WHY)}")
    if command is not None:
        lines.append(_next(command))
    title = f"batchrun: {run} did not start"
    return Notice(printable(title), printable("\n".join(lines)), "failure")


def of_failed_end(summary: Summary, error: BaseException) -> Notice:
    """That a command failed after it had sent all that it would."""
    lines = ["state: failed (exit code 1)", *_counts(summary), f"why: {brief(str(error), _WHY)}"]
    return _notice(summary, "failed", lines, "failure")


def _next(command: str) -> str:
    return f"next: {shell_command(command)}"


def _notice(summary: Summary, what: str, lines: Iterable[str], kind: Kind) -> Notice:
    body = "\n".join([f"run: {summary.run}", *lines])
    return Notice(printable(f"batchrun: {summary.run} {what}"), printable(body), kind)


def _counts(summary: Summary) -> Iterator[str]:
    yield f"rows: {rows_in_words(summary, is_named=True)}"
    yield f"ok: {summary.ok:,}"
    kinds = ", ".join(not_ok_in_words(summary))
    yield f"not ok: {summary.not_ok:,}" + (f" ({kinds})" if kinds else "")
    cap = "" if summary.cap_usd is None else f"; the cap is {usd(summary.cap_usd)} (--max-cost)"
    yield f"cost: {cost_in_words(summary) or 'nothing so far'}{cap}"
