"""`batchrun prices`: the prices that are used, and where each comes from."""

import sys
import time
from pathlib import Path

import click

from batchrun.cli.once import OnceCommand
from batchrun.cli.output import print_json, print_pieces, say
from batchrun.errors import JobError

_EPILOG = """\b
Examples:
  batchrun prices
  batchrun prices gpt-6-luna gpt-6.1-terra
  batchrun prices house-model --job job.toml --format csv
"""


@click.command(epilog=_EPILOG, cls=OnceCommand)
@click.argument("models", metavar="[MODEL]...", nargs=-1)
@click.option(
    "--job",
    "job_file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Also with [pricing] and [aliases] of this job file.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "csv", "json", "markdown"]),
    default="table",
    help="Tables for a terminal (the default), or one of these.",
)
def prices(models: tuple[str, ...], job_file: Path | None, form: str) -> None:
    """Show the prices of models: by tier, where each comes from, and how old the list is.

    Without MODEL, your own prices. Exit code 2 if a model has no price.
    """
    from batchrun.reports.bill.price_tables import price_text, read_prices, show_prices

    known = read_prices(models, job_file, time.time_ns() // 1000)
    for warning in known.warnings:
        say(f"warning: {warning}")
    if form == "json":
        print_json(known)
    elif form in ("csv", "markdown"):
        print_pieces(form, price_text(form, known))
    else:
        show_prices(known, sys.stdout)
    if known.unknown:
        lines = (f"no price is known for {name}. {fix}" for name, fix in known.unknown.items())
        raise JobError("\n".join(lines))
