"""`batchrun run`."""

import json
import shlex
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batchrun.cli.retry_failed import NAME, Kinds, NeverTakesTheNextWord
from batchrun.cli.signals import exit_on_signals, signals_ask
from batchrun.errors import Interrupted, JobError

if TYPE_CHECKING:
    from batchrun.job import Job
    from batchrun.plan import Plan
    from batchrun.records import Resend
    from batchrun.report.summary import Summary

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
early; 4 ended, some rows not ok; 129, 130, 143 interrupted. After 1, 3, 129, 130 and 143 the same
command goes on where it stopped.
"""


class _CountOr(click.ParamType[int | str]):
    """A count from 1, or another word that the job file takes too."""

    def __init__(self, name: str, is_word: Callable[[str], bool]) -> None:
        self.name = name
        self._is_word = is_word

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        text = str(value)
        if self._is_word(text):
            return text
        if not text.isascii() or not text.isdigit() or int(text) == 0:
            self.fail(f"{text!r} is neither a number from 1 nor {self.name}", param, ctx)
        return int(text)


_COUNT_OR_AUTO = _CountOr("auto", lambda word: word == "auto")
_COUNT_OR_SHARE = _CountOr("a share such as 5%", lambda word: word.endswith("%"))


@click.command(epilog=_EPILOG, cls=NeverTakesTheNextWord)
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
    type=_COUNT_OR_AUTO,
    metavar="N",
    help="Most requests in flight.  [default: auto, adapted up to 1000]",
)
@click.option(
    "--rpm", type=click.IntRange(1), metavar="N", help="Most requests a minute.  [default: learnt]"
)
@click.option(
    "--tpm", type=click.IntRange(1), metavar="N", help="Most tokens a minute.  [default: learnt]"
)
@click.option(
    "--max-cost",
    type=click.FloatRange(0),
    metavar="USD",
    help="Stop before spending more, over all commands of this run.",
)
@click.option(
    "--max-failures",
    type=_COUNT_OR_SHARE,
    metavar="N|P%",
    help="Stop after N failed rows, or when P% of the last rows failed.",
)
@click.option(
    "--give-up-after",
    type=click.FloatRange(0),
    metavar="S",
    help="Seconds that the endpoint may be down.  [default: 1800]",
)
@click.option("--hedge", is_flag=True, help="Send second copies of the last slow rows.")
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
@click.option(
    NAME,
    type=Kinds(),
    metavar="[=KIND,…]",
    help="Send again the rows that failed; after = their error kinds, refusal, truncated, "
    "incomplete.",
)
@click.option(
    "--rerun-changed",
    is_flag=True,
    help="Send again the rows whose request changed, or whose part was deleted.",
)
@click.option("--simulate", is_flag=True, help="Against the embedded simulator: no key, no cost.")
@click.option(
    "--insecure-http", is_flag=True, help="Allow a key over plain http to another machine."
)
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
    concurrency: int | str | None,
    rpm: int | None,
    tpm: int | None,
    max_cost: float | None,
    max_failures: int | str | None,
    give_up_after: float | None,
    max_attempts: int | None,
    timeout: float | None,
    limit: int | None,
    retry_failed: frozenset[str] | None,
    *,
    hedge: bool,
    skip_bad_rows: bool,
    rerun_changed: bool,
    simulate: bool,
    insecure_http: bool,
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
    from batchrun.job_file import load_job
    from batchrun.records import Resend

    options = {
        "output.path": output,
        "request.model": model,
        "request.input": prompt,
        "request.instructions": instructions,
        "endpoint.base_url": base_url,
        "endpoint.mode": mode,
        "endpoint.api_key_env": api_key_env,
        "limits.concurrency": concurrency,
        "limits.requests_per_minute": rpm,
        "limits.tokens_per_minute": tpm,
        "limits.max_cost_usd": max_cost,
        "limits.max_failures": max_failures,
        "limits.give_up_after_s": give_up_after,
        "limits.hedge": hedge or None,
        "retry.max_attempts": max_attempts,
        "endpoint.timeout_s": timeout,
        "input.skip_bad_rows": skip_bad_rows or None,
    }
    settings = {key: value for key, value in options.items() if value is not None}
    settings.update(_body_field(text) for text in sets)
    job = load_job(source, settings)
    resend = Resend(retry_failed is not None, retry_failed or frozenset(), rerun_changed)
    command = shlex.join(["batchrun", *sys.argv[1:]])
    if dry_run:
        _dry_run(
            job,
            command,
            simulate=simulate,
            limit=limit,
            insecure_http=insecure_http,
            resend=resend,
        )
        return
    try:
        summary = _run(
            job,
            command,
            simulate=simulate,
            limit=limit,
            quiet=quiet,
            insecure_http=insecure_http,
            resend=resend,
        )
    except Interrupted as end:  # before anything was sent: later it is a summary's `exit_code`
        _say(f"interrupted: {end}; nothing was sent\nnext: {command}")
        sys.exit(end.exit_code)
    from batchrun.claim import run_path
    from batchrun.report.printable import printable_json
    from batchrun.report.terminal import render_end

    _say(render_end(summary, run_path(job, simulate=simulate)))
    if as_json:
        from msgspec.json import encode

        with suppress(BrokenPipeError):
            click.echo(printable_json(encode(summary).decode()))
    sys.exit(summary.exit_code)


def _body_field(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise JobError(f"--set {text}: write KEY=VALUE, such as --set reasoning.effort=low")
    try:
        return f"request.{key}", json.loads(value)
    except ValueError:
        return f"request.{key}", value


def _run(
    job: "Job",
    command: str,
    *,
    simulate: bool,
    limit: int | None,
    quiet: bool,
    insecure_http: bool,
    resend: "Resend",
) -> "Summary":
    import asyncio

    from batchrun import runner
    from batchrun.report.terminal import Progress
    from batchrun.stop_switch import StopSwitch

    progress = Progress(sys.stderr)
    stop = StopSwitch()
    watch = runner.Watch() if quiet else runner.Watch(_say_plan, progress.show)

    async def main() -> "Summary":
        with signals_ask(stop, progress, runner.DRAIN_S, _say):
            return await runner.run_job(
                job,
                simulate=simulate,
                limit=limit,
                command=command,
                stop=stop,
                watch=watch,
                insecure_http=insecure_http,
                resend=resend,
            )

    try:
        with asyncio.Runner(loop_factory=runner.new_event_loop) as loop:
            return loop.run(main())
    finally:
        progress.close()


def _dry_run(
    job: "Job",
    command: str,
    *,
    simulate: bool,
    limit: int | None,
    insecure_http: bool,
    resend: "Resend",
) -> None:
    from batchrun.claim import run_path
    from batchrun.job import key_in_words, refuse_plain_http, refuse_written_secrets
    from batchrun.plan import dry_run
    from batchrun.report.printable import printable_json

    exit_on_signals()  # so that a copy of standard input is not left behind
    refuse_written_secrets(job, command)
    if not (simulate or insecure_http):
        refuse_plain_http(job.endpoint)
    plan = dry_run(job, simulate=simulate, limit=limit, resend=resend)
    _say_plan(plan, run_path(job, simulate=simulate))
    if plan.first is None:
        return
    where = "the simulator" if simulate else job.endpoint.base_url
    key = "" if simulate else f", {key_in_words(job.endpoint)}"
    _say(f"first request, row {plan.first.row}, to POST {where}/responses{key}:")
    body = json.dumps(json.loads(plan.first.body), indent=2, ensure_ascii=False)
    click.echo(printable_json(body))
    _say("nothing was sent (--dry-run)")


def _say_plan(plan: "Plan", path: Path) -> None:
    from batchrun.report.amounts import size_in_words

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
    if not plan.to_settle:
        lines.append("nothing left to send")
    _say("\n".join(lines))


def _say(text: str) -> None:
    """To standard error; that nobody reads it any more must not end a paid run."""
    from batchrun.report.printable import printable

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
