"""How a run stands, read from its directory, and the command that goes on from there."""

import math
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from batchrun.formats.amounts import duration
from batchrun.formats.printable import one_line, printable
from batchrun.progress.display import (
    cost_in_words,
    not_ok_in_words,
    of_answers_that_count,
    oldest_in_words,
    speed_in_words,
    tries_in_words,
)
from batchrun.progress.summary import RunCounters, Summary
from batchrun.records import FAILED
from batchrun.store import reading
from batchrun.store.files import is_locked

ESTIMATE_ONLY = ("--pilot", "--expect-output", "--models")  # options that `run` does not have
_DIGITS = 2  # of a cap: it is rounded up


def next_command(
    command: str | None,
    path: Path,
    exit_code: int,
    statuses: Mapping[str, int],
    example_id: str | None,
    *,
    cap_usd: float | None = None,
    left: int = 0,
) -> str | None:
    """Null where all is well or nothing is known.

    `cap_usd`: what to allow where the budget ended the run; `left`: rows of the source without an
    outcome.
    """
    words = [] if command is None else shlex.split(command)
    if exit_code in (0, 4) and left and words:  # a limit or a pilot is done
        return run_command(words if "--pilot" in words else _without_limit(words))
    if exit_code == 4:
        if words and any(statuses.get(status) for status in FAILED):
            return _with_option(run_command(_without_limit(words)), "--retry-failed")
        shown = "ID" if example_id is None else shlex.quote(example_id)
        return f"batchrun show {shlex.quote(str(path))} {shown}"
    if exit_code and command is not None and cap_usd is not None:
        return _with_option(command, "--max-cost", f"{cap_usd:.12f}".rstrip("0").rstrip("."))
    ended = {status for status, rows in statuses.items() if rows}
    if exit_code and command is not None and ended and ended <= set(FAILED):
        return _with_option(command, "--retry-failed")  # nothing but failures so far
    return command if exit_code else None


def _without_limit(words: Sequence[str]) -> list[str]:
    return _without(list(words), "--limit", has_value=True)


def run_command(words: Sequence[str]) -> str:
    """The command that goes on with all rows: after an `estimate --pilot` that of `run`."""
    kept: list[str] = []
    given = iter(words)
    for word in given:
        if word in ESTIMATE_ONLY:
            next(given, None)
        elif word.partition("=")[0] not in ESTIMATE_ONLY:
            kept.append("run" if word == "estimate" and len(kept) == 1 else word)
    return shlex.join(kept)


def higher_cap_usd(
    spent_usd: float, left: int, cost_of_left_usd: float | None, next_usd: float
) -> float:
    """A cap with room for what is left, rounded up; where no cost is known yet, for the worst.

    `next_usd` is what a request reserves, which must fit too.
    """
    left_usd = left * next_usd if cost_of_left_usd is None else cost_of_left_usd + next_usd
    cap_usd = spent_usd + left_usd
    if not cap_usd > 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(cap_usd)) + 1 - _DIGITS)
    return round(math.ceil(cap_usd / unit) * unit, 12)


def _with_option(command: str, name: str, value: str | None = None) -> str:
    """The command with this option once, in the form `NAME VALUE`."""
    words = _without(shlex.split(command), name, has_value=value is not None)
    end = words.index("--") if "--" in words else len(words)
    option = [name] if value is None else [name, value]
    return shlex.join([*words[:end], *option, *words[end:]])


def _without(words: list[str], name: str, *, has_value: bool) -> list[str]:
    """The words without an option; `has_value`: what stands after it is its value."""
    end = words.index("--") if "--" in words else len(words)
    kept: list[str] = []
    for at, word in enumerate(words[:end]):
        is_value = has_value and at > 0 and words[at - 1] == name
        if word.partition("=")[0] != name and not is_value:
            kept.append(word)
    return [*kept, *words[end:]]


def read_status(path: Path) -> Summary:
    """The live summary while it runs; else what the files hold. Raises `JobError`."""
    record = reading.read_record(path)
    is_running, is_planning = is_locked(path), reading.is_planning(path)
    if is_running and not is_planning:
        live = reading.read_live(path)
        if live is not None:
            try:
                return msgspec.convert(live, Summary)
            except msgspec.ValidationError:
                pass  # written by another version: count the files
    totals = reading.read_totals(path)
    state, exit_code, message = record.state, record.exit_code, record.message
    if is_planning:
        state, exit_code, message = "planning", None, None
    elif state == "running" and not is_running:
        state, exit_code = "killed", 137
    now_s = time.monotonic()
    example = reading.example_not_ok(path) if exit_code == 4 else None
    open_usd = reading.read_answered_usd(path)
    again = 0 if state == "killed" else record.again  # what a kill left of it nobody has counted
    return RunCounters(totals, now_s, again).summary(
        run=str(path),
        state=state,
        rows=record.rows,
        now_s=now_s,
        exit_code=exit_code,
        message=message,
        next_command=None
        if is_running
        else next_command(
            record.command,
            path,
            exit_code or 0,
            totals.statuses,
            example,
            cap_usd=record.higher_cap_usd,
            left=record.rows - totals.rows + again,
        ),
        simulated=record.simulated,
        unknown_usd=reading.read_unknown_usd(path, record),
        unfinished=len(open_usd),
        unfinished_usd=sum(open_usd),
    )


def render_status(stand: Summary, path: Path) -> str:
    """The summary as lines of text."""
    words: dict[str, Any] = {
        "state": stand.state,
        "rows": f"{stand.rows:,}",
        "ok": f"{stand.ok:,}",
        "not ok": f"{stand.not_ok:,}" + _why(stand),
        "left": f"{stand.left:,}",
    }
    if stand.exit_code is None:
        words["in flight"] = f"{stand.in_flight:,}, {stand.retrying:,} between two tries"
        words["rate"] = ", ".join([f"{stand.rows_per_s:,.1f} rows/s", *speed_in_words(stand)])
        if stand.binds:
            words["held by"] = one_line(stand.binds)
        words["limits"] = "; ".join(map(one_line, stand.limits)) or "-"
        if stand.oldest:
            words["oldest"] = oldest_in_words(stand)
        if stand.time_left_s is not None:
            words["time left"] = duration(stand.time_left_s)
    words["attempts"] = tries_in_words(stand)
    tokens = f"{stand.input_tokens:,} in, {stand.output_tokens:,} out"
    words["tokens"] = tokens + of_answers_that_count(stand)
    if (cost := cost_in_words(stand)) is not None:
        words["cost"] = cost
    words["tool calls"] = f"{stand.tool_calls:,}"
    if stand.message and stand.state == "limited":
        name, _, text = stand.message.partition(": ")
        words[name] = text
    elif stand.message:
        words["why"] = stand.message
    if stand.next_command:
        words["next"] = stand.next_command
    lines = [str(path), *(f"  {name + ':':<12}{text}" for name, text in words.items())]
    return printable("\n".join(lines))


def _why(stand: Summary) -> str:
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in sorted(stand.error_kinds.items()))
    said = ", ".join(not_ok_in_words(stand)) + (f": {kinds}" if kinds else "")
    return f" ({said})" if said else ""
