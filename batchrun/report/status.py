"""How a run stands, read from its directory, whether it runs, has ended, or was killed."""

import time
from pathlib import Path
from typing import Any

import msgspec

from batchrun.report.amounts import duration
from batchrun.report.next_command import next_command
from batchrun.report.printable import one_line, printable
from batchrun.report.summary import Summary, Tally
from batchrun.report.terminal import (
    cost_in_words,
    not_ok_in_words,
    of_answers_that_count,
    oldest_in_words,
    speed_in_words,
    tries_in_words,
)
from batchrun.store import tables


def read_status(path: Path) -> Summary:
    """The live summary while it runs; else what the files hold. Raises `JobError`."""
    record = tables.read_record(path)
    is_running, is_planning = tables.is_running(path), tables.is_planning(path)
    if is_running and not is_planning:
        live = tables.read_live(path)
        if live is not None:
            try:
                return msgspec.convert(live, Summary)
            except msgspec.ValidationError:
                pass  # written by another version: count the files
    totals = tables.read_totals(path)
    state, exit_code, message = record.state, record.exit_code, record.message
    if is_planning:
        state, exit_code, message = "planning", None, None
    elif state == "running" and not is_running:
        state, exit_code = "killed", 137
    now_s = time.monotonic()
    example = tables.example_not_ok(path) if exit_code == 4 else None
    open_usd = tables.read_answered_usd(path)
    again = 0 if state == "killed" else record.again  # what a kill left of it nobody has counted
    return Tally(totals, now_s, again).summary(
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
        unknown_usd=tables.read_unknown_usd(path, record),
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
