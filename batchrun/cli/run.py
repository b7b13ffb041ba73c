"""`batchrun run`."""

import json
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batchrun.errors import Interrupted, JobError
from batchrun.job import Job, load_job

if TYPE_CHECKING:
    from batchrun.plan import Plan
    from batchrun.report.summary import Summary
    from batchrun.runner import StopSwitch

_EPILOG = """\b
Examples:
  batchrun run data.jsonl --prompt '{{ question }}' --model gpt-4.1 --simulate
  batchrun run data.jsonl --prompt '{{ question }}' --model gpt-4.1 --dry-run
  batchrun run data.parquet --model gpt-5-mini --set reasoning.effort=low -o runs/low
  batchrun run 'shards/*.jsonl.gz' --model gpt-4.1 --concurrency 200 -o runs/shards
  batchrun run job.toml
  zcat big.jsonl.gz | batchrun run - --model gpt-4.1 -o runs/big

\b
Exit codes: 0 every row ok; 1 the run failed; 2 usage, job or input wrong, nothing sent; 3 stopped
early; 4 ended, some rows not ok; 130, 143 interrupted. After 1, 3, 130 and 143 the same command
goes on where it stopped.
"""


@click.command(epilog=_EPILOG)
@click.argument("source")
@click.option("-o", "--output", metavar="DIR", help="Run directory.  [default: runs/NAME]")
@click.option("--model", metavar="NAME", help="Model, for rows that name none.")
@click.option("--prompt", metavar="TEXT", help="Jinja2 template that makes the input of a row.")
@click.option("--instructions", metavar="TEXT", help="Instructions; may be a template too.")
@click.option(
    "--set",
    "sets",
    multiple=True,
    metavar="KEY=VALUE",
    help="Any other body field, dotted: reasoning.effort=low.",
)
@click.option("--base-url", metavar="URL", help="Endpoint.  [default: $OPENAI_BASE_URL or OpenAI]")
@click.option(
    "--mode",
    type=click.Choice(["plain", "stream", "background"]),
    help="How each request is made.  [default: plain]",
)
@click.option(
    "--api-key-env",
    metavar="NAME",
    help="Variable that holds the key, or none.  [default: OPENAI_API_KEY]",
)
@click.option(
    "--concurrency",
    type=click.IntRange(1),
    metavar="N",
    help="Most requests in flight.  [default: 64]",
)
@click.option(
    "--max-attempts", type=click.IntRange(1), metavar="N", help="Tries for a row.  [default: 6]"
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    metavar="S",
    help="Seconds for one try.  [default: 600]",
)
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the first N rows.")
@click.option("--skip-bad-rows", is_flag=True, help="Bad rows become rows of status invalid.")
@click.option("--simulate", is_flag=True, help="Against the embedded simulator: no key, no cost.")
@click.option("--dry-run", is_flag=True, help="Plan and show the first request; send nothing.")
@click.option("--quiet", is_flag=True, help="No progress.")
@click.option("--json", "as_json", is_flag=True, help="Final summary as JSON on standard output.")
def run(
    source: str,
    output: str | None,
    model: str | None,
    prompt: str | None,
    instructions: str | None,
    sets: tuple[str, ...],
    base_url: str | None,
    mode: str | None,
    api_key_env: str | None,
    concurrency: int | None,
    max_attempts: int | None,
    timeout: float | None,
    limit: int | None,
    *,
    skip_bad_rows: bool,
    simulate: bool,
    dry_run: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Run a prompt set, or go on with it.

    SOURCE is a prompt set (.jsonl, .ndjson, the same with .gz or .zst, .parquet, a folder or a
    quoted glob of these, - for JSON Lines on standard input) or a job file (.toml).

    Rows may be prompts with a template (--prompt), Responses bodies, OpenAI Batch lines, or chat
    messages. Everything is checked before anything is sent. Answers land in RUN/responses and
    RUN/tool_calls as Parquet; the same command again resumes and never pays twice.
    """
    options = {
        "output.path": output,
        "request.model": model,
        "request.input": prompt,
        "request.instructions": instructions,
        "endpoint.base_url": base_url,
        "endpoint.mode": mode,
        "endpoint.api_key_env": api_key_env,
        "limits.concurrency": concurrency,
        "retry.max_attempts": max_attempts,
        "endpoint.timeout_s": timeout,
        "input.skip_bad_rows": skip_bad_rows or None,
    }
    settings = {key: value for key, value in options.items() if value is not None}
    settings.update(_body_field(text) for text in sets)
    job = load_job(source, settings)
    if dry_run:
        _dry_run(job, simulate=simulate, limit=limit)
        return
    command = shlex.join(["batchrun", *sys.argv[1:]])
    try:
        summary = _run(job, command, simulate=simulate, limit=limit, quiet=quiet)
    except Interrupted as end:  # before anything was sent: later it is a summary's `exit_code`
        _say(f"interrupted: {end}; nothing was sent\nnext: {command}")
        sys.exit(end.exit_code)
    from batchrun.plan import run_path
    from batchrun.report.terminal import render_end

    _say(render_end(summary, run_path(job, simulate=simulate)))
    if as_json:
        from msgspec.json import encode

        with suppress(BrokenPipeError):
            click.echo(encode(summary))
    sys.exit(summary.exit_code)


def _body_field(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise JobError(f"--set {text}: write KEY=VALUE, such as --set reasoning.effort=low")
    try:
        return f"request.{key}", json.loads(value)
    except ValueError:
        return f"request.{key}", value


def _run(job: Job, command: str, *, simulate: bool, limit: int | None, quiet: bool) -> "Summary":
    import asyncio

    from batchrun import runner
    from batchrun.report.terminal import Progress

    progress = Progress(sys.stderr)
    stop = runner.StopSwitch()
    watch = runner.Watch() if quiet else runner.Watch(_say_plan, progress.show)

    async def main() -> "Summary":
        with _signals_ask(stop, progress):
            return await runner.run_job(
                job,
                simulate=simulate,
                limit=limit,
                command=command,
                stop=stop,
                watch=watch,
            )

    try:
        with asyncio.Runner(loop_factory=runner.new_event_loop) as loop:
            return loop.run(main())
    finally:
        progress.close()


@contextmanager
def _signals_ask(stop: "StopSwitch", progress: Any) -> Iterator[None]:
    """Ctrl-C and SIGTERM ask the run to stop; a signal that was ignored stays ignored."""
    import asyncio

    loop = asyncio.get_running_loop()

    def ask(number: signal.Signals) -> None:
        stop.ask(f"{number.name} came", 128 + number)
        progress.close()
        if len(stop.asked) > 1:
            _say("stopping: dropping it")
        elif stop.is_sending:
            _say("stopping: waiting for what is in flight (20 s at most); once more drops it")

    numbers = [
        number
        for number in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(number) is not signal.SIG_IGN
    ]
    for number in numbers:
        loop.add_signal_handler(number, ask, number)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def _dry_run(job: Job, *, simulate: bool, limit: int | None) -> None:
    from batchrun.plan import dry_run, run_path

    plan = dry_run(job, simulate=simulate, limit=limit)
    _say_plan(plan, run_path(job, simulate=simulate))
    if plan.first is None:
        return
    where = "the simulator" if simulate else job.endpoint.base_url
    key = (
        ""
        if simulate or job.endpoint.api_key_env == "none"
        else f", key from ${job.endpoint.api_key_env}"
    )
    _say(f"first request, row {plan.first.row}, to POST {where}/responses{key}:")
    click.echo(json.dumps(json.loads(plan.first.body), indent=2, ensure_ascii=False))
    _say("nothing was sent (--dry-run)")


def _say_plan(plan: "Plan", path: Path) -> None:
    lines = [
        _plan_counts(plan, path),
        f"  sent: {', '.join(plan.sent) or 'no column of the rows'}",
        f"  carried: {_carried(plan)}",
        f"  disk: about {_size(plan.disk_bytes)} needed, {_size(plan.free_bytes)} free",
    ]
    lines += [f"  warning: {warning}" for warning in plan.warnings]
    if plan.disk_bytes > plan.free_bytes:
        lines.append("  warning: the disk may fill up; free space or choose another -o")
    if not plan.to_settle:
        lines.append("nothing left to send")
    _say("\n".join(lines))


def _say(text: str) -> None:
    """To standard error; that nobody reads it any more must not end a paid run."""
    with suppress(OSError):
        click.echo(text, err=True)


def _carried(plan: "Plan") -> str:
    """Source columns, with the name that they have in `responses` where that is another one."""
    named = [
        column.column if column.name == column.column else f"{column.column} (as {column.name})"
        for column in plan.layout.columns
    ]
    return ", ".join(named) or "nothing"


def _plan_counts(plan: "Plan", path: Path) -> str:
    return (
        f"plan: {plan.rows:,} rows, {plan.totals.rows:,} settled, {plan.to_send:,} to send, "
        f"{plan.bad_rows:,} bad; run directory {path}"
    )


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
