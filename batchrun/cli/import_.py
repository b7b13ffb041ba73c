"""`batchrun import`: a run made of answers that were produced elsewhere."""

import sys

import click

from batchrun.cli.once import OnceCommand

_EPILOG = """\b
Examples:
  batchrun import answers.jsonl --id question_id --text output --target answer -o runs/theirs
  batchrun import out.parquet --id id --text text --sample sample --variant variant -o runs/old
  batchrun import batch_results.jsonl -o runs/batch
  batchrun import s3://bucket/out.parquet --id id --text text -o s3://bucket/runs/theirs
"""


@click.command("import", epilog=_EPILOG, cls=OnceCommand)
@click.argument("source", metavar="FILE")
@click.option("--id", metavar="COLUMN", help="Column with the id of the prompt.")
@click.option("--text", metavar="COLUMN", help="Column with the answer's text.")
@click.option("--target", metavar="COLUMN", help="Column with the right answer; stored as target.")
@click.option("--sample", metavar="COLUMN", help="Column with the number of the answer, from 0.")
@click.option("--variant", metavar="COLUMN", help="Column with the name of the variant.")
@click.option("--model", metavar="COLUMN", help="Column with the model that answered.")
@click.option(
    "--carry", metavar="COLUMN", multiple=True, help="Further column to store; repeatable."
)
@click.option(
    "-o",
    "--output",
    metavar="DIR",
    required=True,
    help="New run directory, or its URL in a store.",
)
def import_(
    *,
    source: str,
    id: str | None,  # noqa: A002 - the option's name
    text: str | None,
    target: str | None,
    sample: str | None,
    variant: str | None,
    model: str | None,
    carry: tuple[str, ...],
    output: str,
) -> None:
    """Make a run of answers that were produced elsewhere, to be scored and compared.

    FILE (.jsonl, .parquet, …) has a row for each answer; the options name its columns. Without
    --text, FILE holds results of the Batch API. The rows are stored as completed answers; the run
    cannot be sent.
    """
    from batchrun.evals.import_answers import Columns, import_answers
    from batchrun.formats.amounts import plural
    from batchrun.formats.printable import printable
    from batchrun.progress.planning import Planning
    from batchrun.runner.output_place import refuse_scheme

    if text is not None and id is None:
        raise click.UsageError("--text needs --id, the column with the id of the prompt")
    if text is None and any((id, target, sample, variant, model, carry)):
        raise click.UsageError("name the column with the answers: --text COLUMN")
    refuse_scheme(output)
    columns = Columns(id, text, target, sample, variant, model, carry)
    with Planning(sys.stderr, word="importing") as said:
        done = import_answers(source, columns, output, said.doing)
    not_ok = done.rows - done.ok
    rest = f", {not_ok:,} of them not ok (empty, cut, refused or failed)" if not_ok else ""
    split = f"; {plural(done.split, 'id')} split into id, variant and sample" if done.split else ""
    click.echo(printable(f"{done.path}: {plural(done.rows, 'answer')} imported{rest}{split}"))
