"""`batchrun run`."""

import shlex
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from batchrun.cli.job_options import job_options, read_job
from batchrun.cli.retry_failed import NAME, Kinds, NeverTakesTheNextWord
from batchrun.cli.sending import say, say_plan, send
from batchrun.errors import BatchrunError, Interrupted

if TYPE_CHECKING:
    from batchrun.job.sections import Job
    from batchrun.records import Resend

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


@click.command(epilog=_EPILOG, cls=NeverTakesTheNextWord)
@click.argument("source")
@job_options
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the first N rows.")
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
    limit: int | None,
    retry_failed: frozenset[str] | None,
    *,
    rerun_changed: bool,
    simulate: bool,
    insecure_http: bool,
    dry_run: bool,
    quiet: bool,
    as_json: bool,
    **said: Any,
) -> None:
    """Run a prompt set, or go on with it.

    SOURCE is a prompt set (.jsonl, .ndjson, the same with .gz or .zst, .parquet, a folder or a
    quoted glob of these, - for JSON Lines on standard input) or a job file (.toml).

    Rows may be prompts with a template (--prompt), Responses bodies, OpenAI Batch lines, or chat
    messages. Everything is checked before anything is sent. Answers land in RUN/responses and
    RUN/tool_calls as Parquet; the same command again resumes and never pays twice.
    """
    from batchrun.progress.summary import Summary
    from batchrun.records import Resend

    job = read_job(source, said)
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
        summary = send(
            job,
            command,
            simulate=simulate,
            limit=limit,
            quiet=quiet,
            insecure_http=insecure_http,
            resend=resend,
        )
    except Interrupted as end:  # before anything was sent: later it is a summary's `exit_code`
        say(f"interrupted: {end}; nothing was sent\nnext: {command}")
        sys.exit(end.exit_code)
    except BatchrunError as error:
        if not isinstance(error.summary, Summary):
            raise
        summary = error.summary
    from batchrun.formats.printable import printable_json
    from batchrun.progress.summary_text import render_end
    from batchrun.runner.plan import run_path

    say(render_end(summary, run_path(job, simulate=simulate)))
    if as_json:
        from msgspec.json import encode

        with suppress(BrokenPipeError):
            click.echo(printable_json(encode(summary).decode()))
    sys.exit(summary.exit_code)


def _dry_run(
    job: "Job",
    command: str,
    *,
    simulate: bool,
    limit: int | None,
    insecure_http: bool,
    resend: "Resend",
) -> None:
    import json

    from batchrun.cli.signals import exit_on_signals
    from batchrun.formats.printable import printable_json
    from batchrun.job.credentials import key_in_words, refuse_plain_http, refuse_written_secrets
    from batchrun.runner.plan import dry_run, run_path

    exit_on_signals()  # so that a copy of standard input is not left behind
    refuse_written_secrets(job, command)
    if not (simulate or insecure_http):
        refuse_plain_http(job.endpoint)
    plan = dry_run(job, simulate=simulate, limit=limit, resend=resend)
    say_plan(plan, run_path(job, simulate=simulate))
    if plan.first is None:
        return
    where = "the simulator" if simulate else job.endpoint.base_url
    key = "" if simulate else f", {key_in_words(job.endpoint)}"
    say(f"first request, row {plan.first.row}, to POST {where}/responses{key}:")
    body = json.dumps(json.loads(plan.first.body), indent=2, ensure_ascii=False)
    click.echo(printable_json(body))
    say("nothing was sent (--dry-run)")
