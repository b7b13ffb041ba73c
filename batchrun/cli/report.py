"""`batchrun report`: the results of a run, summarised."""

import sys
from pathlib import Path

import click

from batchrun.cli.once import OnceCommand
from batchrun.cli.output import warn_of_missing_parts
from batchrun.cli.run_param import SCORED_RUN

_EPILOG = """\b
Examples:
  batchrun report runs/prompts
  batchrun report runs/prompts --html report.html --top 20
"""


@click.command(epilog=_EPILOG, cls=OnceCommand)
@click.argument("run_path", metavar="RUN", type=SCORED_RUN)
@click.option(
    "--html",
    "page",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write a page with charts and random rows instead; needs the extra `report`.",
)
@click.option(
    "--top",
    metavar="N",
    type=click.IntRange(1, 1_000),
    default=10,
    show_default=True,
    help="How many of the slowest and of the most expensive rows to list.",
)
def report(run_path: Path, page: Path | None, top: int) -> None:
    """Summarise a run: outcomes, tokens, cost, times, errors, tool calls, slowest rows.

    Works during the run; rows in the journal are counted.
    """
    from batchrun.formats.amounts import size_in_words
    from batchrun.formats.printable import printable

    warn_of_missing_parts(run_path)
    if page is not None:
        from batchrun.evals.tables.score_page import score_parts
        from batchrun.reports.page.page_file import write_page

        size = write_page(run_path, page, top=top, parts=score_parts)
        click.echo(printable(f"{page}: {size_in_words(size)}"))
        return
    from batchrun.reports.report_queries import read_report
    from batchrun.reports.report_sections import show_report

    show_report(read_report(run_path, top=top), sys.stdout)
