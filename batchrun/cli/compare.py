"""`batchrun compare`: variants of a run, or runs, question by question."""

import sys
from pathlib import Path

import click

from batchrun.cli.once import OnceCommand
from batchrun.cli.output import say, warn_of_missing_parts
from batchrun.cli.run_param import SCORED_RUN

_EPILOG = """\b
Examples:
  batchrun compare runs/gsm8k --variant base --variant new
  batchrun compare runs/monday runs/tuesday --scorer number
  batchrun compare runs/gsm8k --variant base --variant new --flips flips.parquet
"""


@click.command(epilog=_EPILOG, cls=OnceCommand)
@click.argument("run_paths", metavar="RUN...", nargs=-1, required=True, type=SCORED_RUN)
@click.option(
    "--variant",
    "variants",
    metavar="NAME",
    multiple=True,
    help="Repeatable: the others are compared with the first. With several runs: one for all, or "
    "one for each; without it, variants of the same name are compared.",
)
@click.option(
    "--scorer", "scorers", metavar="NAME", multiple=True, help="Only this scorer; repeatable."
)
@click.option("--by", metavar="COLUMN", help="A line for each value of a column of the prompts.")
@click.option("--cluster", metavar="COLUMN", help="Questions with the same value are one cluster.")
@click.option("--level", default=0.95, show_default=True, help="Level of the intervals.")
@click.option(
    "--missing",
    type=click.Choice(["leave", "zero"]),
    default="leave",
    show_default=True,
    help="Rows without a score are left out, or count as 0.",
)
@click.option(
    "--flips",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write the questions whose shares of right answers differ to FILE, as Parquet.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json", "csv", "markdown", "latex"]),
    default="table",
    show_default=True,
)
@click.option(
    "--columns",
    metavar="A,B",
    help="Only these columns of the table, in this order, such as difference,interval,p.",
)
def compare(
    run_paths: tuple[Path, ...],
    variants: tuple[str, ...],
    scorers: tuple[str, ...],
    by: str | None,
    cluster: str | None,
    level: float,
    missing: str,
    flips: Path | None,
    form: str,
    columns: str | None,
) -> None:
    """Compare variants of a run, or runs, over the questions that both have scored.

    The difference is taken question by question, so that the difficulty of a question cancels out.
    All are compared with the first; the p values of several comparisons are corrected (Holm).
    """
    from batchrun.evals.compare import compare as compare_runs
    from batchrun.evals.tables.compare_text import write_comparisons

    for path in run_paths:
        warn_of_missing_parts(path)
    found = compare_runs(
        *run_paths,
        variants=variants,
        scorers=scorers,
        by=by,
        cluster=cluster,
        level=level,
        missing="zero" if missing == "zero" else "leave",
        flips=flips,
    )
    write_comparisons(found, form, sys.stdout, columns)
    if flips is not None:
        say(f"{flips}: {sum(line.flips for line in found.lines):,} flipped")
