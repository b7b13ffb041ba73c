"""What commands print: results on standard output, messages on standard error."""

from contextlib import suppress
from pathlib import Path

import click


def print_json(value: object) -> None:
    """One JSON object on standard output."""
    from msgspec.json import encode

    from batchrun.formats.printable import printable_json

    click.echo(printable_json(encode(value).decode()))


def say(text: str) -> None:
    """A message on standard error; that nobody reads it any more must not end a paid run."""
    from batchrun.formats.printable import printable

    with suppress(OSError):
        click.echo(printable(text), err=True)


def warn_of_missing_parts(path: Path) -> None:
    """One line where a run directory has lost parts. Raises `JobError`, `StoreError`."""
    from batchrun.formats.amounts import plural
    from batchrun.formats.printable import one_line
    from batchrun.store.reading import read_missing_parts

    parts = [f"{name} ({plural(rows, 'row')})" for name, rows in read_missing_parts(path).items()]
    if parts:
        which = (
            f"{parts[0]} is" if len(parts) == 1 else f"{parts[0]} and {len(parts) - 1:,} more are"
        )
        fix = f"missing and left out here; restore what batchrun verify {path} names"
        say(one_line(f"warning: {path}: {which} {fix}"))
