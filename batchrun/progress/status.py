"""How a run is doing, read from its directory, and the command that goes on from there."""

import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from batchrun.formats.amounts import plural
from batchrun.job.expansion import recorded_expansion
from batchrun.job.stop_time import date_and_time
from batchrun.progress.summary import RunCounters, Summary
from batchrun.progress.summary_text import PARTS, RESEND
from batchrun.records import FAILED
from batchrun.remote.run_link import run_name
from batchrun.store import reading
from batchrun.store.files import is_driven, is_locked, live_workers

_STOP_AT = "--stop-at"
_ESTIMATE_ONLY = ("--pilot", "--expect-output", "--models")  # options that `run` does not have


def read_status(path: Path) -> Summary:
    """The live summary while it runs; else what the files hold. Raises `JobError`, `StoreError`."""
    record = reading.read_record(path)
    is_running, is_planning = is_locked(path), reading.is_planning(path)
    draining = [] if is_driven(path) else live_workers(path)
    if is_running and not is_planning and not draining and (live := reading.read_live(path)):
        try:
            return msgspec.convert(live, Summary)
        except msgspec.ValidationError:
            pass  # written by another version: count the files
    totals = reading.read_totals(path)
    state, exit_code = reading.state_now(path, record), record.exit_code
    message = record.message
    if is_planning:
        state, exit_code, message = "planning", None, None
    elif draining:
        state, exit_code, message = "stopping", None, _draining_in_words(draining)
    elif state == "killed":
        exit_code = 137
    now_s = time.monotonic()
    # After a kill it is not known how many of these have a new outcome.
    again = 0 if state == "killed" else record.again
    asked = record.rows if record.asked is None else max(record.asked, totals.rows - again)
    goes_on = None
    if not is_running:
        goes_on = next_command(
            record.command,
            run_name(path),
            exit_code or 0,
            totals.statuses,
            reading.example_not_ok(path) if exit_code == 4 else None,
            cap_usd=record.higher_cap_usd,
            remaining=record.rows - totals.rows + again - record.left_out,
            asked=None if record.asked is None else max(0, asked - totals.rows + again),
            beyond_pilot=record.beyond_pilot,
        )
    unfinished_usd = reading.read_answered_usd(path)
    expansion = recorded_expansion(record)
    return RunCounters(totals, now_s, again).summary(
        run=run_name(path),
        state=state,
        rows=asked,
        source_rows=record.rows,
        now_s=now_s,
        exit_code=exit_code,
        message=message,
        next_command=goes_on,
        simulated=record.simulated,
        left_out=record.left_out,
        beyond_pilot=record.beyond_pilot or 0,
        unknown_usd=reading.read_unknown_usd(path, record),
        unfinished=len(unfinished_usd),
        unfinished_usd=round(sum(unfinished_usd), 9),
        samples=expansion.samples,
        variants=tuple(filter(None, expansion.variants)),
    )


def _draining_in_words(workers: Sequence[int]) -> str:
    what = plural(len(workers), "worker")
    return (
        f"the command of this run has ended; {what} (w{', w'.join(map(str, workers))}) still "
        f"{'waits' if len(workers) == 1 else 'wait'} for requests in flight; the next command "
        "continues when they have ended"
    )


def next_command(
    command: str | None,
    run: Path | str,
    exit_code: int,
    statuses: Mapping[str, int],
    example_id: str | None,
    *,
    cap_usd: float | None = None,
    remaining: int = 0,
    asked: int | None = None,
    beyond_pilot: int | None = None,
) -> str | None:
    """The command that goes on after one that ended like this; None where none is needed.

    `run`: its path or URL; `cap_usd`: what to allow where the budget ended the run; `remaining`:
    rows of the source without an outcome, without those that `--where` leaves out; `asked`: of
    them, those that the command was to send; `beyond_pilot`: those that it would send without
    `--pilot`; null: not known. `example_id`: of a row that is not ok.
    """
    if command is not None:
        command = _with_next_stop(command)
    words = [] if command is None else shlex.split(command)
    unlimited = words
    for option in PARTS:
        unlimited = _without(unlimited, option, has_value=True)
    has_failed = any(statuses.get(status) for status in FAILED)
    ended = {status for status, rows in statuses.items() if rows}
    only_failures = ended and ended <= set(FAILED)
    resends = any(word.partition("=")[0] in RESEND for word in words)
    # Whatever ended it: where all that it asked for is done, it sends nothing more.
    is_done = exit_code in (0, 4) or (asked == 0 and not only_failures and not resends)
    if words and is_done and remaining:
        is_pilot = words[1] == "estimate" and beyond_pilot != 0
        return run_command(words if is_pilot else unlimited)
    if words and is_done and exit_code and has_failed:
        return _with_option(run_command(unlimited), "--retry-failed")
    if exit_code == 4:
        shown = ["ID"] if example_id is None else [example_id]
        dashes = ["--"] if shown[0].startswith("-") else []
        return shlex.join(["batchrun", "show", *dashes, str(run), *shown])
    if not exit_code or command is None:
        return None
    if cap_usd is not None:
        return _with_option(command, "--max-cost", f"{cap_usd:.12f}".rstrip("0").rstrip("."))
    return _with_option(run_command(words), "--retry-failed") if only_failures else command


def _with_next_stop(command: str) -> str:
    """The command; of a date and time to stop at, which is past by then, the time of day alone."""
    words = shlex.split(command)
    end = words.index("--") if "--" in words else len(words)
    for at, word in enumerate(words[:end]):
        name, equals, value = word.partition("=")
        if name == _STOP_AT and (equals or at + 1 < end):
            moment = date_and_time(value if equals else words[at + 1])
            if moment is not None:
                return _with_option(command, _STOP_AT, moment.astimezone().strftime("%H:%M"))
    return command


def run_command(words: Sequence[str]) -> str:
    """The same command for all rows; of an `estimate --pilot`, that of `run`."""
    words = ["run" if at == 1 and word == "estimate" else word for at, word in enumerate(words)]
    for option in _ESTIMATE_ONLY:
        words = _without(words, option, has_value=True)
    return shlex.join(words)


def _with_option(command: str, name: str, value: str | None = None) -> str:
    """The command with this option once, in the form `NAME VALUE`."""
    words = _without(shlex.split(command), name, has_value=value is not None)
    end = words.index("--") if "--" in words else len(words)
    option = [name] if value is None else [name, value]
    return shlex.join([*words[:end], *option, *words[end:]])


def _without(words: Sequence[str], name: str, *, has_value: bool) -> list[str]:
    """The words without an option; `has_value`: the word after it is its value."""
    end = words.index("--") if "--" in words else len(words)
    before = ("", *words)
    return [
        word
        for at, word in enumerate(words)
        if at >= end or (word.partition("=")[0] != name and not (has_value and before[at] == name))
    ]
