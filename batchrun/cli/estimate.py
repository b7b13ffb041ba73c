"""`batchrun estimate`: what a run will cost, before it is sent."""

import sys
from typing import Any

import click

from batchrun.cli.options import SourceCommand, read_options
from batchrun.cli.output import print_json, say
from batchrun.cli.sending import exit_on_signals, heard_signals, planning, send

_ENDED = (0, 4)  # exit codes of a pilot whose rows all have an outcome

_EPILOG = """\b
Examples:
  batchrun estimate data.jsonl --prompt '{{ question }}' --model gpt-6-luna
  batchrun estimate job.toml --models gpt-6-luna,gpt-6.1-terra
  batchrun estimate job.toml --expect-output 300
  batchrun estimate job.toml --pilot 50
"""


@click.command(epilog=_EPILOG, cls=SourceCommand)
@click.option(
    "--expect-output",
    type=click.IntRange(0, 10_000_000),
    metavar="N",
    help="Assume N tokens for each answer, instead of three assumed lengths.",
)
@click.option("--models", metavar="A,B,C", help="Compare models: all rows with each of these.")
@click.option(
    "--pilot",
    type=click.IntRange(1),
    metavar="N",
    help="Send N random rows, and estimate from them the cost of all.",
)
def estimate(
    *,
    expect_output: int | None,
    models: str | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Estimate what a run will cost before it is sent: tokens, dollars, time.

    SOURCE and the options of a job are those of `batchrun run`. Nothing is sent and no file is
    written, except with --pilot: its rows stay in the run directory, and `batchrun run` sends only
    the others.
    """
    from msgspec.structs import replace

    from batchrun.estimate.estimate_text import show_estimate
    from batchrun.estimate.estimates import make_estimate
    from batchrun.formats.amounts import plural
    from batchrun.formats.printable import shell_command
    from batchrun.progress.status import run_command
    from batchrun.progress.summary_text import next_in_words, render_end

    options = read_options(given)
    selection = options.selection
    pilot = selection.pilot
    if pilot and selection.resend.is_asked:
        raise click.UsageError(
            "--pilot picks from rows that have no outcome; leave --retry-failed and "
            "--rerun-changed out"
        )
    if pilot and selection.variants:
        raise click.UsageError("--pilot sends rows of all variants; leave --variant out")
    if pilot and (models or expect_output is not None):
        raise click.UsageError(
            "--pilot measures the job's own models; leave --models and --expect-output out"
        )
    names = [name for name in map(str.strip, (models or "").split(",")) if name]
    if models is not None and not names:
        raise click.UsageError("--models names none; write --models gpt-6-luna,gpt-6.1-terra")
    exit_code, heard, after = 0, heard_signals(), list[str]()
    if pilot:
        summary = send(options)
        exit_code = summary.exit_code or 0
        if exit_code not in _ENDED:
            say("the pilot did not end, so there is no estimate yet")
            say(render_end(summary, summary.run))
            sys.exit(exit_code)
        after = next_in_words(summary)
    exit_on_signals(heard)  # so that no copy of standard input stays behind
    with planning(options) as said:
        made = make_estimate(
            options.job,
            replace(selection, pilot=0),
            simulate=options.simulate,
            models=names,
            expect_output=expect_output,
            store=bool(pilot),
            doing=said.doing,
        )
    if as_json:
        print_json(made)
    else:
        show_estimate(made, sys.stdout)
    if pilot and made.to_send:
        command = shell_command(run_command(["batchrun", *sys.argv[1:]]))
        after = [f"next step: send the other {plural(made.to_send, 'row')}", f"next: {command}"]
    if after:
        say("\n".join(after))
    sys.exit(exit_code)
