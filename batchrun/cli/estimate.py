"""`batchrun estimate`: what a run will cost, before it is sent."""

import sys
from typing import Any

import click

from batchrun.cli.job_options import job_options, read_job
from batchrun.cli.signals import exit_on_signals

_EPILOG = """\b
Examples:
  batchrun estimate data.jsonl --prompt '{{ question }}' --model gpt-4.1
  batchrun estimate data.jsonl --prompt '{{ question }}' --models gpt-4.1,gpt-5-mini,o4-mini
  batchrun estimate job.toml --expect-output 300
  batchrun estimate job.toml --pilot 50
"""


@click.command(epilog=_EPILOG, short_help="Say what a run will cost, before it is sent.")
@click.argument("source")
@click.option(
    "--expect-output",
    type=click.IntRange(0),
    metavar="N",
    help="Tokens of an answer, in place of three assumptions.",
)
@click.option("--models", metavar="A,B,C", help="Compare: all rows with each of these models.")
@job_options
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the first N rows.")
@click.option("--simulate", is_flag=True, help="Against the embedded simulator: no key, no cost.")
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
def estimate(
    source: str,
    expect_output: int | None,
    models: str | None,
    limit: int | None,
    *,
    simulate: bool,
    as_json: bool,
    **said: Any,
) -> None:
    """Say what a run will cost, before it is sent.

    SOURCE and the options of a job are those of `batchrun run`. Sends nothing and leaves nothing
    behind.
    """
    from batchrun.estimate.estimates import make_estimate

    exit_on_signals()  # so that a copy of standard input is not left behind
    job = read_job(source, said)
    names = [name.strip() for name in (models or "").split(",")]
    made = make_estimate(
        job,
        simulate=simulate,
        limit=limit,
        models=[name for name in names if name],
        expect_output=expect_output,
    )
    if as_json:
        from msgspec.json import encode

        from batchrun.report.printable import printable_json

        click.echo(printable_json(encode(made).decode()))
        return
    from batchrun.estimate.terminal import show_estimate

    show_estimate(made, sys.stdout)
