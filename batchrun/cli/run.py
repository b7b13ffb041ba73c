"""`batchrun run`."""

import sys
from contextlib import suppress
from typing import Any

import click

from batchrun.cli.options import RunOptions, SourceCommand, read_options
from batchrun.cli.output import echo_json, print_json, say
from batchrun.cli.sending import exit_on_signals, planning, say_plan, send

_EPILOG = """\b
Examples:
  batchrun run data.jsonl --prompt '{{ question }}' --model gpt-6-luna
  batchrun run data.parquet --model gpt-6-luna --set reasoning.effort=low
  batchrun run 'in/*.jsonl.gz' --model gpt-6-luna --concurrency 200 -o runs/in
  batchrun run job.toml --dry-run
  batchrun run job.toml --simulate
  zcat big.jsonl.gz | batchrun run - --model gpt-6-luna -o runs/big

\b
Exit codes:
  0  every row that was asked for is ok
  1  the run failed (disk, bug)
  2  usage, job or input is wrong, or the run directory is in use; nothing was sent
  3  stopped early (cap, key, quota, failures, endpoint down, --stop-at)
  4  ended, but some rows are not ok (more than --tolerate)
  129, 130, 143  interrupted
After 1, 3, 129, 130 and 143 the same command continues where it stopped.
"""


@click.command(epilog=_EPILOG, cls=SourceCommand)
@click.option("--dry-run", is_flag=True, help="Plan, show the first request, send nothing.")
def run(*, dry_run: bool, as_json: bool, **given: Any) -> None:
    """Run a prompt set, or resume it.

    SOURCE is a job file (.toml) or a prompt set. A prompt set is a file (.parquet; .jsonl, .ndjson
    or .json, also with .gz, .zst, .bz2 or .xz), a folder or a quoted glob of such files, one of
    these in an object store (s3://, gs://, abfs://) or on the Hub (hf://datasets/OWNER/NAME), a run
    directory, or - for JSON Lines on standard input.

    Rows may be columns for a template (--prompt), Responses bodies, OpenAI Batch lines, or chat
    messages. Everything is checked before anything is sent. The results are Parquet files in
    RUN/responses and RUN/tool_calls. The same command again resumes: no stored answer is lost or
    paid for again. After a kill, only requests that were in flight can be paid for twice.
    """
    from batchrun.progress.summary_text import render_end

    options = read_options(given)
    if dry_run:
        _dry_run(options)
        return
    summary = send(options)
    say(render_end(summary, summary.run))
    if as_json:
        with suppress(BrokenPipeError):
            print_json(summary)
    sys.exit(summary.exit_code)


def _dry_run(options: RunOptions) -> None:
    import json

    from batchrun.dialects.responses import PATH
    from batchrun.job.credentials import key_in_words, refuse_plain_http, refuse_written_secrets
    from batchrun.progress.notifier import usable_addresses
    from batchrun.runner.output_place import run_path
    from batchrun.runner.plan import dry_run

    exit_on_signals()  # so that no copy of standard input stays behind
    job, simulate = options.job, options.simulate
    refuse_written_secrets(job, options.command)
    if not (simulate or options.insecure_http):
        for variant in job.expansion.variants:
            refuse_plain_http(job.endpoint_of(variant))
    with planning(options) as said:
        if job.notify.urls:
            said.doing("checking the addresses of --notify")
            usable_addresses(job)
        plan = dry_run(
            job,
            options.selection,
            simulate=simulate,
            doing=said.doing,
        )
    say_plan(plan, run_path(job, simulate=simulate))
    if plan.first is not None:
        endpoint = job.endpoint_of(plan.first.variant)
        where = f"{PATH} of the simulator" if simulate else f"{endpoint.base_url}{PATH}"
        key = "" if simulate else f", {key_in_words(endpoint)}"
        of = "" if plan.first.variant is None else f", variant {plan.first.variant}"
        say(f"first request (row {plan.first.row}{of}), POST to {where}{key}:")
        body = json.dumps(json.loads(plan.first.body), indent=2, ensure_ascii=False)
        echo_json(body)
        say("nothing was sent (--dry-run)")
