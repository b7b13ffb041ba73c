"""The group of commands, and how errors become messages and exit codes."""

import contextlib
import errno
import os
import sys
from importlib import import_module
from pathlib import Path

import click

from batchrun.cli.output import open_streams, say
from batchrun.errors import BatchrunError
from batchrun.formats.arrow_import import prepare_arrow_import
from batchrun.version import VERSION

# The module of each command, and what `batchrun --help` says of it.
_COMMANDS = {
    "run": ("run", "Run a prompt set, or resume it."),
    "estimate": ("estimate", "Estimate what a run will cost before it is sent."),
    "status": ("look", "Show the state of a run and the next command."),
    "show": ("look", "Show one row in readable form."),
    "cost": ("cost", "Show what runs cost, or would have cost elsewhere."),
    "prices": ("prices", "Show the prices used, and how old the list is."),
    "report": ("report", "Summarise a run, in tables or as an HTML page."),
    "import": ("import_", "Make a run of answers produced elsewhere."),
    "score": ("score", "Score the answers of a run."),
    "metrics": ("metrics", "Summarise scores: means, intervals, pass@k."),
    "compare": ("compare", "Compare variants or runs by their scores."),
    "sql": ("sql", "Run an SQL query over the rows of runs."),
    "export": ("export", "Write all rows into one file, such as CSV or Parquet."),
    "verify": ("verify", "Check from its files that a run is intact."),
    "simulate": ("simulate", "Serve simulated answers of the Responses API."),
}
_EXAMPLES = """\b
Examples:
  batchrun run prompts.jsonl --prompt '{{ question }}' --model gpt-6-luna
  batchrun run jobs/overnight_dataset.toml --dry-run
  batchrun run jobs/overnight_dataset.toml --simulate
  batchrun status runs/prompts
  batchrun show runs/prompts 17
  batchrun report runs/prompts --html report.html
"""


def find_command(name: str) -> click.Command:
    """The command of this name, imported."""
    module, _ = _COMMANDS[name]
    home = import_module(f"batchrun.cli.{module}")
    found: click.Command = getattr(home, module if name == "import" else name)
    return found


class _Commands(click.Group):
    """Imports a command when it is the one that was asked for: `--help` takes a quarter less."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, _, rest = super().resolve_command(ctx, args)
        return name, find_command(name) if name else None, rest


@click.group(
    cls=_Commands,
    commands=[click.Command(name, short_help=text) for name, (_, text) in _COMMANDS.items()],
    epilog=_EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(VERSION, prog_name="batchrun")
def batchrun() -> None:
    """Run a prompt set against an OpenAI-style Responses API, and get Parquet tables.

    The same command again resumes: no stored answer is lost or paid for again.
    """


def main() -> None:
    """Runs the command line and exits with its code; no traceback for foreseen errors."""
    try:
        _main()
    except SystemExit as end:
        stores = sys.modules.get("batchrun.remote.object_stores")
        if stores is not None and stores.has_open_calls():
            with contextlib.suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(end.code if isinstance(end.code, int) else 1)
        raise


def _main() -> None:
    prepare_arrow_import()
    open_streams()
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
        say(f"batchrun: {error}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ENOSPC, errno.EIO):
            say(f"batchrun: {_about(error)}")
            sys.exit(2 if error.errno in (errno.ENOENT, errno.EACCES, errno.EPERM) else 1)
        # Standard output cannot be written; Python must not do so again when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if error.errno == errno.ENOSPC:
            say(f"batchrun: the output cannot be written ({error.strerror})")
        sys.exit(1)


def _about(error: OSError) -> str:
    """What a system error says that nothing foresaw."""
    try:
        Path.cwd()
    except FileNotFoundError:
        return (
            "the working directory no longer exists; change into one that exists (cd), or "
            "give absolute paths"
        )
    file = f"{error.filename}: " if error.filename else ""
    return f"{file}{error.strerror or error}; check that it is there and may be used"
