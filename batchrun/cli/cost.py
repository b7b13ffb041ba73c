"""`batchrun cost`: what runs cost, and what the same tokens would cost elsewhere."""

import sys
from pathlib import Path

import click

from batchrun.cli.missing import warn_of_missing_parts


@click.command(
    epilog="""\b
Examples:
  batchrun cost runs/prompts --by split
  batchrun cost runs/prompts --model gpt-5-mini --model o4-mini --tier batch
  batchrun cost runs/monday runs/tuesday
""",
)
@click.argument(
    "run_paths", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option("--model", "models", metavar="NAME", multiple=True, help="What if: another model.")
@click.option(
    "--tier", metavar="TIER", help="What if: standard, batch, flex, priority or fast processing."
)
@click.option("--by", metavar="COLUMN", help="By a column of responses too, such as a carried one.")
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
def cost(
    run_paths: tuple[Path, ...],
    models: tuple[str, ...],
    tier: str | None,
    by: str | None,
    *,
    as_json: bool,
) -> None:
    """Say what runs cost: by model, tier, status and kind of attempt.

    From the usage columns alone, at the prices known today, also while a run goes on. --model and
    --tier put the same tokens at other prices beside it.
    """
    from batchrun.reports.cost import read_costs

    for path in run_paths:
        warn_of_missing_parts(path)
    costs = read_costs(run_paths, models=models, tier=tier, by=by)
    if as_json:
        from msgspec.json import encode

        from batchrun.formats.printable import printable_json

        click.echo(printable_json(encode(costs).decode()))
        return
    from batchrun.reports.cost_tables import show_costs

    show_costs(costs, sys.stdout)
