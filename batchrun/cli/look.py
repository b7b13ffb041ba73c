"""`batchrun status` and `batchrun show`: they read a run directory and change nothing."""

import sys
from pathlib import Path

import click

from batchrun.cli.once import OnceCommand
from batchrun.cli.output import print_json, warn_of_missing_parts
from batchrun.cli.run_param import RUN, SCORED_RUN
from batchrun.errors import JobError

_EPILOG = """\b
Examples:
  batchrun status runs/prompts
  batchrun status runs/prompts --watch
  batchrun status runs/prompts --format prometheus > batchrun.prom
"""


@click.command(epilog=_EPILOG, cls=OnceCommand)
@click.argument("run_path", metavar="RUN", type=RUN)
@click.option("--watch", is_flag=True, help="Show the progress until the run ends, then the state.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json", "prometheus"]),
    help="Text, one JSON object, or metrics for a textfile collector.",
)
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
def status(run_path: Path, *, watch: bool, form: str | None, as_json: bool) -> None:
    """Show how many rows are complete, failed and remaining, and the next command.

    Works while the run is going on in another shell.
    """
    from batchrun.progress.prometheus import prometheus_text
    from batchrun.progress.status import read_status
    from batchrun.progress.summary_text import render_status

    if as_json and form not in (None, "json"):
        raise click.UsageError(f"--json and --format {form} are two formats; give one of them.")
    form = "json" if as_json else form or "text"
    if watch:
        if form != "text":
            raise click.UsageError(f"--watch shows text; take --watch or {form} out.")
        _watch(run_path)
    warn_of_missing_parts(run_path)
    summary = read_status(run_path)
    if form == "json":
        print_json(summary)
    elif form == "prometheus":
        click.echo(prometheus_text(summary, run_path), nl=False)
    else:
        click.echo(render_status(summary, summary.run))


def _watch(path: Path) -> None:
    """Shows a run that goes on; a signal ends it, and leaves the terminal as it was."""
    from batchrun.cli.sending import exit_on_signals
    from batchrun.progress.display import watch_run
    from batchrun.remote.run_link import read_link
    from batchrun.store.files import is_locked

    link = read_link(path)
    if link is not None and link.claim is None and is_locked(path):
        raise JobError(
            f"{link.url}: --watch works on the machine that writes the run; give batchrun status "
            "without it here"
        )
    exit_on_signals()
    watch_run(path, sys.stdout)


@click.command(epilog="\b\nExample:\n  batchrun show runs/prompts 17", cls=OnceCommand)
@click.argument("run_path", metavar="RUN", type=SCORED_RUN)
@click.argument("custom_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print all columns and tool calls as JSON.")
def show(run_path: Path, custom_id: str, *, as_json: bool) -> None:
    """Show one row: the conversation, the tool calls, and each attempt on a time line.

    ID is the row's custom_id, or its number if the input has no ids. 'ID|VARIANT|SAMPLE' names one
    of several samples or variants.
    """
    from batchrun.formats.json_text import shown
    from batchrun.remote.run_link import run_name
    from batchrun.reports.show import render_row
    from batchrun.store.columns import KEY, put_beside
    from batchrun.store.reading import find_answered, find_row, find_scores
    from batchrun.store.unreadable import read_unreadable

    warn_of_missing_parts(run_path)
    rows, unfinished = find_row(run_path, custom_id), find_answered(run_path, custom_id)
    if not rows and not unfinished:
        raise JobError(
            f"{run_name(run_path)}: no complete row has the id {shown(custom_id)}; "
            f"batchrun status {run_name(run_path)} says how many are complete"
        )
    bodies = read_unreadable(run_path, (rows or unfinished)[0]["custom_id"])
    scores = find_scores(run_path, (rows or unfinished)[0]["custom_id"])
    for row in (*rows, *unfinished):
        is_open = row in unfinished
        found = [one for one in scores if all(one[name] == row[name] for name in KEY)]
        own = [{n: v for n, v in one.items() if n not in KEY} for one in found]
        if as_json:
            more = {"scores": own, "unfinished": is_open, "unreadable": bodies}
            for name, value in more.items():
                if value:
                    put_beside(row, name, value)
            print_json(row)
            continue
        if is_open:
            click.echo("unfinished: this answer is requested again; the row has no outcome yet")
        click.echo(render_row(row, bodies, own))
    sys.stdout.flush()
