"""`batchrun export`: a run's rows in one file."""

from pathlib import Path

import click

from batchrun.cli.output import warn_of_missing_parts

_EPILOG = """\b
Examples:
  batchrun export runs/prompts answers.csv
  batchrun export runs/prompts output.jsonl --format batch
"""


@click.command(epilog=_EPILOG)
@click.argument("run_path", metavar="RUN", type=click.Path(path_type=Path))
@click.argument("target", metavar="FILE", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    type=click.Choice(["jsonl", "csv", "batch"]),
    help="By the name of FILE unless given; batch is the output of the Batch API.",
)
def export(run_path: Path, target: Path, form: str | None) -> None:
    """Write all rows into FILE, in the order of the input, with those in the journal.

    FILE is replaced as a whole, or not at all. In CSV, text that a spreadsheet would take for a
    formula gets an apostrophe before it.
    """
    from batchrun.formats.amounts import plural, size_in_words
    from batchrun.formats.printable import printable
    from batchrun.reports.export import export_run, format_of

    warn_of_missing_parts(run_path)
    done = export_run(run_path, target, form or format_of(target))
    remaining = f"; {done.left:,} of the source have no outcome yet" if done.left else ""
    click.echo(
        printable(f"{target}: {plural(done.rows, 'row')}, {size_in_words(done.bytes)}{remaining}")
    )
