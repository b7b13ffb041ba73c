"""The options that `metrics` and `compare` have in common, each declared once."""

from collections.abc import Callable
from typing import Any

import click

from batchrun.cli.run_param import SCORED_RUN

_OPTIONS = (
    click.argument("run_paths", metavar="RUN...", nargs=-1, required=True, type=SCORED_RUN),
    click.option(
        "--scorer", "scorers", metavar="NAME", multiple=True, help="Only this scorer; repeatable."
    ),
    click.option("--by", metavar="COLUMN", help="A line for each value of a column of responses."),
    click.option(
        "--cluster", metavar="COLUMN", help="Questions with the same value are one cluster."
    ),
    click.option("--level", default=0.95, show_default=True, help="Level of the intervals."),
    click.option(
        "--missing",
        type=click.Choice(["leave", "zero"]),
        default="leave",
        show_default=True,
        help="Rows without a score: leave them out, or count them as 0.",
    ),
    click.option(
        "--format",
        "form",
        type=click.Choice(["table", "json", "csv", "markdown", "latex"]),
        default="table",
        show_default=True,
    ),
    click.option(
        "--columns",
        metavar="A,B",
        help="Only these columns of the table, in this order, such as mean,interval.",
    ),
)


def score_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command with RUN... and these options."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
