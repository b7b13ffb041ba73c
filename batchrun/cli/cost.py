"""`batchrun cost`: what runs cost, and what the same tokens would cost at other prices."""

import sys
from pathlib import Path

import click

from batchrun.cli.once import OnceCommand
from batchrun.cli.output import print_json, print_pieces, say, warn_of_missing_parts
from batchrun.cli.run_param import RUN

_EPILOG = """\b
Examples:
  batchrun cost runs/monday runs/tuesday
  batchrun cost runs/* --by team --by started_at:day --format csv > bill.csv
  batchrun cost runs/prompts --model gpt-6-luna --tier batch
"""


@click.command(epilog=_EPILOG, cls=OnceCommand)
@click.argument("run_paths", metavar="RUN...", nargs=-1, required=True, type=RUN)
@click.option(
    "--by",
    metavar="COLUMN",
    multiple=True,
    help="Group by a column of responses or of the input, run, model, tier or attempt, by date as "
    "started_at:day (hour, week, month, year), or by an expression in SQL. Repeatable: groups by "
    "all "
    "of them together.",
)
@click.option(
    "--model", "models", metavar="NAME", multiple=True, help="Also at the prices of this model."
)
@click.option(
    "--tier", metavar="TIER", help="Also at standard, batch, flex, priority or fast prices."
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "csv", "json", "markdown"]),
    help="Tables for a terminal (the default), or one of these with everything.",
)
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
def cost(
    run_paths: tuple[Path, ...],
    by: tuple[str, ...],
    models: tuple[str, ...],
    tier: str | None,
    form: str | None,
    *,
    as_json: bool,
) -> None:
    """Show what runs cost: each of them, all together, by model, tier and more.

    Calculated from the usage columns at the prices known today, also during a run. --model
    and --tier show what the same tokens would cost at other prices.
    """
    from batchrun.reports.bill.cost import read_costs
    from batchrun.reports.bill.cost_tables import cost_text, show_costs

    if as_json and form not in (None, "json"):
        raise click.UsageError(f"--json and --format {form} contradict each other; give one.")
    for path in run_paths:
        warn_of_missing_parts(path)
    costs = read_costs(run_paths, models=models, tier=tier, by=by)
    for warning in costs.warnings:
        say(f"warning: {warning}")
    if as_json or form == "json":
        print_json(costs)
    elif form in ("csv", "markdown"):
        print_pieces(form, cost_text(form, costs))
    else:
        show_costs(costs, sys.stdout)
