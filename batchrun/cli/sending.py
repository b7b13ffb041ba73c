"""A run carried out from a command: its signals, its plan and progress on standard error."""

import gc
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

_YOUNG = 50_000  # objects made before the garbage collector looks at them; ...
_OLD = 10, 1_000  # ... and how often until it looks at older ones. All of them take it 60 ms
_TURN_S = 0.001  # a thread keeps the interpreter while another waits for it

if TYPE_CHECKING:
    from batchrun.job.sections import Job
    from batchrun.progress.summary import Summary
    from batchrun.records import Resend
    from batchrun.runner.plan import Plan


def send(
    job: "Job",
    command: str,
    *,
    simulate: bool,
    limit: int | None,
    quiet: bool,
    insecure_http: bool,
    resend: "Resend | None" = None,
    pilot: int = 0,
) -> "Summary":
    """The summary of a run, or of a pilot of so many rows. Raises as `run_job`."""
    import asyncio

    from batchrun.cli.signals import signals_ask
    from batchrun.progress.display import Progress
    from batchrun.records import NOTHING_SENT_AGAIN
    from batchrun.runner.ending import StopSwitch
    from batchrun.runner.engine import DRAIN_S, Watch
    from batchrun.runner.start import new_event_loop, run_job

    progress = Progress(sys.stderr)
    stop = StopSwitch()
    interpreter = ExitStack()
    watch = Watch(sending=lambda: interpreter.enter_context(_quick_interpreter()))
    if not quiet:
        watch.plan, watch.summary = say_plan, progress.show

    async def main() -> "Summary":
        with signals_ask(stop, progress, DRAIN_S, say):
            return await run_job(
                job,
                simulate=simulate,
                limit=limit,
                command=command,
                stop=stop,
                watch=watch,
                insecure_http=insecure_http,
                resend=resend or NOTHING_SENT_AGAIN,
                pilot=pilot,
            )

    try:
        with interpreter, asyncio.Runner(loop_factory=new_event_loop) as loop:
            return loop.run(main())
    finally:
        progress.close()


@contextmanager
def _quick_interpreter() -> Iterator[None]:
    """The interpreter as a run wants it, in a process that does nothing else.

    What stands already is left alone by the collector, and new objects are looked at rarely: few
    are in cycles. Worth a tenth of a run's CPU, far more with hundreds in flight. A thread that
    reads rows gives the interpreter back to the event loop after a millisecond, not five.
    """
    threshold, interval_s = gc.get_threshold(), sys.getswitchinterval()
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, *_OLD)
    sys.setswitchinterval(_TURN_S)
    try:
        yield
    finally:  # libraries look for what is left of theirs when the process ends
        sys.setswitchinterval(interval_s)
        gc.set_threshold(*threshold)
        gc.unfreeze()


def say_plan(plan: "Plan", path: Path) -> None:
    from batchrun.formats.amounts import size_in_words

    needed, free = size_in_words(plan.disk_bytes), size_in_words(plan.free_bytes)
    lines = [
        _plan_counts(plan, path),
        f"  sent: {', '.join(plan.sent) or 'no column of the rows'}",
        f"  carried: {_carried(plan)}",
        f"  disk: about {needed} needed, {free} free",
    ]
    lines += [f"  warning: {warning}" for warning in plan.warnings]
    if plan.disk_bytes > plan.free_bytes:
        lines.append("  warning: the disk may fill up; free space or choose another -o")
    if not plan.to_complete:
        lines.append("nothing left to send")
    say("\n".join(lines))


def say(text: str) -> None:
    """To standard error; that nobody reads it any more must not end a paid run."""
    from batchrun.formats.printable import printable

    with suppress(OSError):
        click.echo(printable(text), err=True)


def _carried(plan: "Plan") -> str:
    """Source columns, with the name that they have in `responses` where that is another one."""
    named = [
        column.column if column.name == column.column else f"{column.column} (as {column.name})"
        for column in plan.layout.columns
    ]
    return ", ".join(named) or "nothing"


def _plan_counts(plan: "Plan", path: Path) -> str:
    again = plan.resumed.resent.rows
    sent = f"{plan.to_send:,} to send" + (f" ({again:,} of them again)" if again else "")
    return (
        f"plan: {plan.rows:,} rows, {plan.resumed.totals.rows:,} settled, {sent}, "
        f"{plan.bad_rows:,} bad; run directory {path}"
    )
