"""`batchrun cost`: what runs cost, and what the same tokens would cost at other prices."""

import sys
from pathlib import Path

import click

from batchrun.cli.once import OnceCommand
from batchrun.cli.output import print_json, warn_of_missing_parts

_EPILOG = """\b
Examples:
  batchrun cost runs/prompts --by split
  batchrun cost runs/prompts --model gpt-6-luna --tier batch
  batchrun cost runs/monday runs/tuesday
"""


@click.command(epilog=_EPILOG, cls=OnceCommand)
@click.argument(
    "run_paths", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option(
    "--model", "models", metavar="NAME", multiple=True, help="Also at the prices of this model."
)
@click.option(
    "--tier", metavar="TIER", help="Also at standard, batch, flex, priority or fast prices."
)
@click.option("--by", metavar="COLUMN", help="Also by a column of responses or of the input.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def cost(
    run_paths: tuple[Path, ...],
    models: tuple[str, ...],
    tier: str | None,
    by: str | None,
    *,
    as_json: bool,
) -> None:
    """Show what runs cost: by model, tier, status and kind of attempt.

    Calculated from the usage columns at the prices known today, also while a run goes on. --model
    and --tier show what the same tokens would cost at other prices.
    """
    from batchrun.reports.cost import read_costs
    from batchrun.reports.cost_tables import show_costs

    for path in run_paths:
        warn_of_missing_parts(path)
    costs = read_costs(run_paths, models=models, tier=tier, by=by)
    if as_json:
        print_json(costs)
    else:
        show_costs(costs, sys.stdout)
