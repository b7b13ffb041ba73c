"""`batchrun sql`: questions to the tables of one run or several."""

import os
import shutil
import sys
from pathlib import Path

import click

from batchrun.cli.output import echo_json, warn_of_missing_parts
from batchrun.cli.run_param import SCORED_RUN

_EPILOG = """\b
Examples:
  batchrun sql runs/prompts "SELECT status, count(*) FROM responses GROUP BY ALL"
  batchrun sql runs/monday runs/tuesday "SELECT run, sum(cost_usd) FROM responses GROUP BY ALL"
  batchrun sql runs/prompts "SELECT p.*, output_text FROM responses
    JOIN 'prompts.parquet' p ON p.id = custom_id" --format csv > answers.csv
"""


@click.command(epilog=_EPILOG)
@click.argument("run_paths", metavar="RUN...", nargs=-1, required=True, type=SCORED_RUN)
@click.argument("query", metavar="QUERY")
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "csv", "json", "markdown"]),
    default="table",
    help="A table (long text is cut), or one of these with everything.",
)
def sql(run_paths: tuple[Path, ...], query: str, form: str) -> None:
    """Run an SQL query (DuckDB) over the rows of runs, including those in the journal.

    The tables are responses, tool_calls, attempts (a row for each attempt), scores (a row for each
    score), and turns (still empty). The column run names the run of each row. A query reads and
    changes nothing; it can join files of this machine.
    """
    from batchrun.formats.printable import printable
    from batchrun.reports.query import query_runs

    # Most queries are longer than a path may be, which pathlib takes for an error.
    if not query.strip() or os.path.isdir(query):  # noqa: PTH112
        raise click.UsageError("QUERY is missing; it comes after the runs, in quotes.")
    for path in run_paths:
        warn_of_missing_parts(path)
    on_terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size((80, 24)).columns
    shown = printable if on_terminal or form != "csv" else str

    def write(piece: str) -> None:
        if form == "json":
            echo_json(piece, nl=False)
        else:
            click.echo(shown(piece), nl=False)

    query_runs(run_paths, query, form, width, write)
