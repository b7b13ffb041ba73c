"""One line on standard error where a run directory has lost parts."""

from pathlib import Path

import click


def warn_of_missing_parts(path: Path) -> None:
    """Said before what is read of the others. Raises `JobError`, `StoreError`."""
    from batchrun.formats.amounts import plural
    from batchrun.formats.printable import one_line
    from batchrun.store.reading import read_missing_parts

    missing = read_missing_parts(path)
    if not missing:
        return
    first, *rest = (f"{name} ({plural(rows, 'row')})" for name, rows in missing.items())
    which = f"{first} and {len(rest):,} more are" if rest else f"{first} is"
    end = f"missing and left out here; put back what batchrun verify {path} names"
    click.echo(one_line(f"warning: {path}: {which} {end}"), err=True)
