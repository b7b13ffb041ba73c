"""A run carried out by a command: its plan and progress on standard error, and its signals.

A signal that was ignored at the start stays ignored. No moment is a bad one: files bear a kill, so
what does not listen may be ended at once.
"""

import gc
import os
import signal
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from batchrun.cli.options import RunOptions
from batchrun.cli.output import say
from batchrun.errors import BatchrunError, Interrupted, RunStopped
from batchrun.formats.printable import shell_command

if TYPE_CHECKING:
    from batchrun.progress.display import Progress
    from batchrun.progress.planning import Planning
    from batchrun.progress.summary import Summary
    from batchrun.runner.ending import StopSwitch
    from batchrun.runner.plan import Plan

_YOUNG = 50_000  # objects made before the garbage collector looks at them; ...
_OLD = 10, 1_000  # ... and how often until it looks at older ones. All of them take it 60 ms
_SWITCH_S = 0.001  # a thread holds the interpreter so long while another waits for it
_SIGNALS = {
    signal.SIGHUP: "interrupted, since the terminal was closed (SIGHUP)",
    signal.SIGINT: "interrupted by Ctrl-C",
    signal.SIGTERM: "interrupted by SIGTERM",
}


def send(options: RunOptions) -> "Summary":
    """The summary of a run. Raises as `run_job`.

    Interrupted before anything was sent, it ends the process.
    """
    with planning(options) as said:
        return _send(options, said)


def _send(options: RunOptions, said: "Planning") -> "Summary":
    import asyncio

    from msgspec.structs import replace

    from batchrun.progress.display import Progress
    from batchrun.progress.summary import Summary
    from batchrun.runner.ending import StopSwitch
    from batchrun.runner.engine import Watch
    from batchrun.runner.notified import notified
    from batchrun.runner.start import new_event_loop, run_job

    progress, stop = Progress(sys.stderr), StopSwitch()
    interpreter = ExitStack()
    watch = Watch(doing=said.doing, sending=lambda: interpreter.enter_context(_tuned_interpreter()))
    watch.plan = say_warnings
    if not options.quiet:
        watch.plan, watch.summary = say_plan, progress.show

    say_it, planned = watch.plan, list[str]()

    def plan_made(plan: "Plan", path: Path) -> None:
        said.close()
        planned.extend(plan.warnings)
        say_it(plan, path)

    watch.plan = plan_made
    not_told: list[str] = []
    say_wait = (lambda _what: None) if options.quiet else say
    telling = notified(
        options.job, watch, command=options.command, say=say_wait, warn=not_told.append
    )

    async def main() -> "Summary":
        with _stopping_on_signals(stop, progress, said):
            async with telling as watch:
                return await run_job(
                    options.job,
                    options.selection,
                    simulate=options.simulate,
                    simulator=options.simulator,
                    command=options.command,
                    stop=stop,
                    watch=watch,
                    insecure_http=options.insecure_http,
                )

    try:
        with interpreter, asyncio.Runner(loop_factory=new_event_loop) as loop:
            summary = loop.run(main())
    # Before anything was sent: later it is a summary's `exit_code`.
    except (Interrupted, RunStopped) as end:
        say(f"{end}; nothing was sent\nnext: {shell_command(options.command)}")
        sys.exit(end.exit_code)
    except BatchrunError as error:
        if not isinstance(error.summary, Summary):
            raise
        summary = error.summary
    finally:
        progress.close()
        for problem in not_told:
            say(f"warning: {problem}")
    for problem in summary.warnings[len(planned) :]:
        say(f"warning: {problem}")
    return replace(summary, warnings=(*summary.warnings, *not_told))


def planning(options: RunOptions) -> "Planning":
    """Says what is done before anything is sent, unless it is to be quiet."""
    from batchrun.progress.planning import Planning

    return Planning(sys.stderr, is_quiet=options.quiet)


@contextmanager
def _tuned_interpreter() -> Iterator[None]:
    """The interpreter as a run wants it, in a process that does nothing else.

    The collector leaves the objects that exist alone and looks at new ones rarely: few are in
    cycles. Worth a tenth of a run's CPU, far more with hundreds in flight. A thread that reads rows
    lets the event loop go on after a millisecond, not five.
    """
    threshold, interval_s = gc.get_threshold(), sys.getswitchinterval()
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, *_OLD)
    sys.setswitchinterval(_SWITCH_S)
    try:
        yield
    finally:  # libraries clean up their objects when the process ends
        sys.setswitchinterval(interval_s)
        gc.set_threshold(*threshold)
        gc.unfreeze()


@contextmanager
def _stopping_on_signals(
    stop: "StopSwitch", progress: "Progress", said: "Planning"
) -> Iterator[None]:
    """Signals ask the run to stop, on the running loop; once it is over they are ignored."""
    import asyncio

    from batchrun.runner.engine import DRAIN_S

    loop = asyncio.get_running_loop()

    def ask(number: signal.Signals) -> None:
        stop.ask(_SIGNALS[number], 128 + number)
        progress.close()
        said.close()
        times = len(stop.asked)
        if not stop.is_sending:
            if times > 2:
                os._exit(128 + number)
            say("stopping" if times == 1 else "stopping: the next Ctrl-C ends it at once")
        elif times == 1:
            progress.count_down(DRAIN_S)
            wait = f"waiting up to {DRAIN_S:.0f} s for requests in flight"
            say(f"stopping: {wait}; Ctrl-C again drops them")
        else:
            dropping = "dropping requests in flight"
            say(f"stopping: {dropping if times == 2 else 'writing the tables'}")

    numbers = heard_signals()
    for number in numbers:
        loop.add_signal_handler(number, ask, number)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)  # printing the results takes a moment


def heard_signals() -> list[signal.Signals]:
    """Those that are not ignored."""
    return [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


def exit_on_signals(numbers: Sequence[signal.Signals] | None = None) -> None:
    """For work that is no run, such as reading standard input: it is undone on the way out.

    `numbers`: what was heard before a run, since nothing is heard after it.
    """
    for number in heard_signals() if numbers is None else numbers:
        signal.signal(number, lambda number, _frame: sys.exit(128 + number))


def say_warnings(plan: "Plan", _path: Path) -> None:
    """All that is said of a plan under `--quiet`."""
    for warning in _warnings(plan):
        say(f"warning: {warning}")


def _warnings(plan: "Plan") -> list[str]:
    full = "the disk may fill up; free space or choose another -o"
    return [*plan.warnings, *([full] if plan.disk_bytes > plan.free_bytes else [])]


def say_plan(plan: "Plan", path: Path) -> None:
    from batchrun.formats.amounts import size_in_words
    from batchrun.remote.run_link import run_name

    resent = f" ({plan.resumed.resent.rows:,} of them again)" if plan.resumed.resent.rows else ""
    counts = f"{plan.to_send:,} to send{resent}, {plan.bad_rows:,} bad"
    complete = f"{plan.resumed.totals.rows:,} complete"
    place = run_name(path)
    needed, free = size_in_words(plan.disk_bytes), size_in_words(plan.free_bytes)
    carried = [
        column.column if column.name == column.column else f"{column.column} (as {column.name})"
        for column in plan.layout.columns
    ]
    # Of a template somebody has said so.
    is_plain = plan.forms.keys() == {"rows for a template"}
    forms = "" if is_plain else ", ".join(f"{name}: {rows:,}" for name, rows in plan.forms.items())
    lines = [
        f"plan: {_rows_in_words(plan)}, {complete}, {counts}; run directory {place}",
        *([f"  journal: {path}"] if place != str(path) else []),
        *([f"  read as: {forms}"] if forms else []),
        f"  sent: {', '.join(plan.sent) or 'no column of the rows'}",
        f"  carried: {', '.join(carried) or 'no column'}",
        f"  disk: about {needed} needed, {free} free",
        *(f"  warning: {warning}" for warning in _warnings(plan)),
    ]
    if not plan.to_complete:
        lines.append("nothing left to send")
    say("\n".join([_whole_words(lines[0]), *lines[1:]]))


def _whole_words(line: str) -> str:
    """In a terminal it goes on in a second line where it must, and no word is cut."""
    columns = os.get_terminal_size(sys.stderr.fileno()).columns if sys.stderr.isatty() else 0
    if not 0 < columns < len(line):
        return line
    return textwrap.fill(
        line, columns, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def _rows_in_words(plan: "Plan") -> str:
    """`1,319 rows`, or `1,319 rows x 2 variants x 4 samples = 10,552 requests`."""
    from batchrun.formats.amounts import plural

    words = plan.expansion.in_words(plan.source_rows)
    return words if plan.expansion.is_plain else f"{words} = {plural(plan.rows, 'request')}"
