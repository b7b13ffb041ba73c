"""The group of commands, and how errors become messages and exit codes."""

import errno
import os
import sys
from contextlib import suppress

import click

from batchrun.cli.cost import cost
from batchrun.cli.estimate import estimate
from batchrun.cli.export import export
from batchrun.cli.look import show, status
from batchrun.cli.report import report
from batchrun.cli.run import run
from batchrun.cli.simulate import simulate
from batchrun.cli.verify import verify
from batchrun.errors import BatchrunError
from batchrun.lean_arrow import take_arrow_lean
from batchrun.report.printable import printable
from batchrun.version import VERSION

_EXAMPLES = """\b
Examples:
  batchrun run prompts.jsonl --prompt '{{ question }}' --model gpt-4.1 --simulate
  batchrun run prompts.jsonl --prompt '{{ question }}' --model gpt-4.1
  batchrun run jobs/overnight.toml --dry-run
  batchrun status runs/prompts
  batchrun show runs/prompts 17
  batchrun report runs/prompts --html report.html
"""


def _help_width() -> int:
    """As click finds it, but without shutil, whose imports are a twentieth of `--help`."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns):
        width = int(columns)
    else:
        try:
            width = os.get_terminal_size(1).columns or 80
        except OSError:  # no terminal
            width = 80
    return max(50, min(width, 100) - 2)


@click.group(
    epilog=_EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"], "terminal_width": _help_width()},
)
@click.version_option(VERSION, prog_name="batchrun")
def batchrun() -> None:
    """Run a prompt set against an OpenAI-style Responses API, and get Parquet tables.

    The same command again resumes: what is answered is never sent, nor paid for, twice.
    """


batchrun.add_command(run)
batchrun.add_command(estimate)
batchrun.add_command(status)
batchrun.add_command(show)
batchrun.add_command(cost)
batchrun.add_command(report)
batchrun.add_command(export)
batchrun.add_command(verify)
batchrun.add_command(simulate)


def main() -> None:
    """Runs the command line and exits with its code; no traceback for foreseen errors."""
    take_arrow_lean()
    _open_standard_streams()
    try:
        batchrun.main(standalone_mode=False)
    except click.exceptions.Exit as end:
        sys.exit(end.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except click.Abort:
        sys.exit(130)
    except BatchrunError as error:
        with suppress(OSError):  # nobody may be there to read it: the terminal was closed
            click.echo(f"batchrun: {printable(str(error))}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ENOSPC, errno.EIO):
            raise
        # Standard output cannot be written; Python must not try again when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if error.errno == errno.ENOSPC:
            click.echo(f"batchrun: the output cannot be written ({error.strerror})", err=True)
        sys.exit(1)


def _open_standard_streams() -> None:
    """A closed standard stream is opened on nothing: else a socket would get its number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r+"))  # noqa: SIM115, PTH123 - open to the end
