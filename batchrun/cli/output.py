"""What commands print: results on standard output, messages on standard error.

What a console cannot encode is replaced.
"""

import codecs
import io
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import click

_ASCII = "ascii_text"  # what an ASCII console is said to take: click writes UTF-8 to plain `ascii`
_REPLACE = "batchrun.replace"
# For consoles that lack the sign; `?` stands for all others.
_INSTEAD = {
    "…": "...",
    "→": "->",
    "≤": "<=",
    "µ": "u",
    "\u00d7": "x",  # the sign of multiplication
    **dict.fromkeys("·\u2013\u2014─━═", "-"),  # dashes
    **dict.fromkeys("\u201c\u201d", '"'),
    **dict.fromkeys("\u2018\u2019", "'"),
    **dict.fromkeys("│┃", "|"),
    **dict.fromkeys("█▇▆▅▄▃▂▁", "#"),
}


def open_streams() -> None:
    """Standard streams that can be written to, whatever text comes.

    A closed one is opened on the null device: else a socket would get its number.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r+"))  # noqa: SIM115, PTH123 - open to the end
    codecs.register_error(_REPLACE, _replaced)
    codecs.register(_ascii_codec)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            is_ascii = codecs.lookup(stream.encoding).name == "ascii"
            stream.reconfigure(encoding=_ASCII if is_ascii else stream.encoding, errors=_REPLACE)


def _replaced(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    return "".join(_INSTEAD.get(letter, "?") for letter in letters), error.end


def _ascii_codec(name: str) -> codecs.CodecInfo | None:
    if name != _ASCII:
        return None
    plain = codecs.lookup("ascii")
    return codecs.CodecInfo(
        plain.encode,
        plain.decode,
        plain.streamreader,
        plain.streamwriter,
        plain.incrementalencoder,
        plain.incrementaldecoder,
        name="ascii-text",
    )


def print_json(value: object) -> None:
    """One JSON object on standard output."""
    from msgspec.json import encode

    echo_json(encode(value).decode())


def echo_json(text: str, *, nl: bool = True) -> None:
    """JSON on standard output, harmless, and in the letters that it takes."""
    from batchrun.formats.printable import ascii_json, printable_json

    shown = printable_json(text)
    try:
        shown.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        shown = ascii_json(shown)
    click.echo(shown, nl=nl)


def print_pieces(form: str, pieces: Iterable[str]) -> None:
    """CSV or Markdown on standard output.

    CSV goes to files and pipes as UTF-8, whatever the locale, with a byte order mark.
    """
    from batchrun.formats.csv_text import BOM
    from batchrun.formats.printable import printable

    is_raw = form == "csv" and not sys.stdout.isatty()
    if is_raw:
        click.echo(BOM.encode(), nl=False)
    for piece in pieces:
        click.echo(piece.encode("utf-8", "replace") if is_raw else printable(piece), nl=False)


def say(text: str) -> None:
    """A message on standard error; that nobody reads it any more must not end a paid run."""
    from batchrun.formats.printable import printable

    with suppress(OSError):
        click.echo(printable(text), err=True)


def warn_of_missing_parts(path: Path) -> None:
    """One line where a run directory has lost parts. Raises `JobError`, `StoreError`."""
    from batchrun.formats.amounts import plural
    from batchrun.formats.printable import one_line
    from batchrun.remote.run_link import run_name
    from batchrun.store.reading import read_missing_parts

    parts = [f"{name} ({plural(rows, 'row')})" for name, rows in read_missing_parts(path).items()]
    if parts:
        which = (
            f"{parts[0]} is" if len(parts) == 1 else f"{parts[0]} and {len(parts) - 1:,} more are"
        )
        fix = f"missing and left out here; restore what batchrun verify {run_name(path)} names"
        say(one_line(f"warning: {run_name(path)}: {which} {fix}"))
