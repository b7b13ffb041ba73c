"""`batchrun export`: a run's rows in one file, or in a folder of files."""

from pathlib import Path

import click

from batchrun.cli.once import OnceCommand
from batchrun.cli.output import warn_of_missing_parts
from batchrun.cli.run_param import RUN

_EPILOG = """\b
Examples:
  batchrun export runs/prompts answers.csv
  batchrun export runs/prompts answers.parquet --parsed --columns custom_id,ok
  batchrun export runs/prompts by_split --partition-by split
  batchrun export runs/prompts output.jsonl --format batch
"""


@click.command(epilog=_EPILOG, cls=OnceCommand)
@click.argument("run_path", metavar="RUN", type=RUN)
@click.argument("target", metavar="FILE", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    type=click.Choice(["jsonl", "csv", "batch", "parquet"]),
    help="Default: as the name of FILE says; batch is the format of the Batch API's output.",
)
@click.option(
    "--columns", metavar="A,B", multiple=True, help="These columns, in this order; repeatable."
)
@click.option(
    "--parsed",
    is_flag=True,
    help="Add the structured answers as typed columns, by their JSON schema.",
)
@click.option(
    "--partition-by",
    metavar="COLUMN",
    help="FILE becomes a folder with a Parquet file for each value of COLUMN.",
)
@click.option(
    "--raw", is_flag=True, help="In CSV, put no apostrophe before what looks like a formula."
)
def export(
    run_path: Path,
    target: Path,
    form: str | None,
    columns: tuple[str, ...],
    *,
    parsed: bool,
    partition_by: str | None,
    raw: bool,
) -> None:
    """Write all rows into FILE, in the order of the input, including those in the journal.

    FILE is replaced as a whole, or not at all. In CSV, text that a spreadsheet would take for a
    formula gets an apostrophe before it.
    """
    from batchrun.formats.amounts import plural, size_in_words
    from batchrun.formats.printable import printable
    from batchrun.reports.export import Wanted, export_run, format_of

    warn_of_missing_parts(run_path)
    wanted = Wanted(columns, parsed, partition_by, raw)
    done = export_run(run_path, target, form or format_of(target, wanted), wanted)
    remaining = f"; {done.left:,} of the source have no outcome yet" if done.left else ""
    if done.misfits:
        fit = "does not fit its schema" if done.misfits == 1 else "do not fit their schema"
        remaining += f"; {plural(done.misfits, 'answer')} {fit}: null there, whole in output_text"
    click.echo(
        printable(f"{target}: {plural(done.rows, 'row')}, {size_in_words(done.bytes)}{remaining}")
    )
