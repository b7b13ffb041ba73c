"""`batchrun estimate`: what a run will cost, before it is sent."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batchrun.cli.job_options import job_options, read_job
from batchrun.cli.retry_failed import NAME, Kinds, NeverTakesTheNextWord
from batchrun.cli.sending import say, send
from batchrun.errors import Interrupted

if TYPE_CHECKING:
    from batchrun.job.sections import Job

_ENDED = (0, 4)  # exit codes of a run that came to its end

_EPILOG = """\b
Examples:
  batchrun estimate data.jsonl --prompt '{{ question }}' --model gpt-4.1
  batchrun estimate data.jsonl --prompt '{{ question }}' --models gpt-4.1,gpt-5-mini,o4-mini
  batchrun estimate job.toml --expect-output 300
  batchrun estimate job.toml --pilot 50
"""


@click.command(
    epilog=_EPILOG,
    cls=NeverTakesTheNextWord,
)
@click.argument("source")
@click.option(
    "--expect-output",
    type=click.IntRange(0, 10_000_000),
    metavar="N",
    help="Tokens of an answer, in place of three assumptions.",
)
@click.option("--models", metavar="A,B,C", help="Compare: all rows with each of these models.")
@click.option(
    "--pilot",
    type=click.IntRange(1),
    metavar="N",
    help="Really send N rows, picked by chance, and tell by them what all will cost.",
)
@job_options
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the first N rows.")
@click.option(
    NAME,
    type=Kinds(),
    metavar="[=KIND,…]",
    help="As if the rows that failed were sent again; see `batchrun run`.",
)
@click.option(
    "--rerun-changed", is_flag=True, help="As if the rows whose request changed were sent again."
)
@click.option("--simulate", is_flag=True, help="Against the embedded simulator: no key, no cost.")
@click.option(
    "--insecure-http", is_flag=True, help="Allow a key over plain http to another machine."
)
@click.option("--quiet", is_flag=True, help="No progress of the pilot.")
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
def estimate(
    source: str,
    expect_output: int | None,
    models: str | None,
    pilot: int | None,
    limit: int | None,
    retry_failed: frozenset[str] | None,
    *,
    rerun_changed: bool,
    simulate: bool,
    insecure_http: bool,
    quiet: bool,
    as_json: bool,
    **said: Any,
) -> None:
    """Say what a run will cost, before it is sent: tokens, dollars, time.

    SOURCE and the options of a job are those of `batchrun run`. Nothing is sent and nothing is left
    behind, but with --pilot: its rows stay in the run directory, are never paid again, and
    `batchrun run` goes on from there.
    """
    from batchrun.cli.signals import exit_on_signals
    from batchrun.estimate.estimates import make_estimate
    from batchrun.records import Resend

    resend = Resend(retry_failed is not None, retry_failed or frozenset(), rerun_changed)
    if pilot and resend.is_asked:
        raise click.UsageError(
            "--pilot picks from rows that have no outcome; leave --retry-failed and "
            "--rerun-changed out"
        )
    if pilot and (models or expect_output is not None):
        raise click.UsageError(
            "--pilot measures the job's own models; leave --models and --expect-output out"
        )
    names = [name for name in map(str.strip, (models or "").split(",")) if name]
    if models is not None and not names:
        raise click.UsageError("--models names none; write --models gpt-4.1,gpt-5-mini")
    job = read_job(source, said)
    exit_code = 0
    if pilot:
        exit_code = _send_pilot(
            job,
            shlex.join(["batchrun", *sys.argv[1:]]),  # it goes on with a pilot that was cut short
            pilot,
            simulate=simulate,
            limit=limit,
            quiet=quiet,
            insecure_http=insecure_http,
        )
    else:
        exit_on_signals()  # so that a copy of standard input is not left behind
    made = make_estimate(
        job,
        simulate=simulate,
        limit=limit,
        resend=resend,
        models=names,
        expect_output=expect_output,
    )
    if pilot and made.estimated is not None and made.to_send:
        from batchrun.estimate.pilot import keep_estimated

        keep_estimated(Path(made.run), made.estimated)
    if as_json:
        from msgspec.json import encode

        from batchrun.formats.printable import printable_json

        click.echo(printable_json(encode(made).decode()))
    else:
        from batchrun.estimate.estimate_text import show_estimate

        show_estimate(made, sys.stdout)
    if pilot and made.to_send:
        from batchrun.progress.status import run_command

        say(f"next: {run_command(['batchrun', *sys.argv[1:]])}")
    sys.exit(exit_code)


def _send_pilot(
    job: "Job",
    command: str,
    pilot: int,
    *,
    simulate: bool,
    limit: int | None,
    quiet: bool,
    insecure_http: bool,
) -> int:
    """The pilot's exit code; leaves the command where it did not come to its end."""
    from batchrun.cli.signals import exit_on_signals, heard_signals
    from batchrun.progress.summary_text import render_end
    from batchrun.runner.plan import run_path

    heard = heard_signals()
    try:
        summary = send(
            job,
            command,
            simulate=simulate,
            limit=limit,
            quiet=quiet,
            insecure_http=insecure_http,
            pilot=pilot,
        )
    except Interrupted as end:
        say(f"interrupted: {end}; nothing was sent")
        sys.exit(end.exit_code)
    if summary.exit_code not in _ENDED:
        say(render_end(summary, run_path(job, simulate=simulate)))
        say("the pilot did not come to its end; the next command goes on with it")
        sys.exit(summary.exit_code)
    exit_on_signals(heard)
    return summary.exit_code
