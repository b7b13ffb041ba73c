"""The group of commands, and how errors become messages and exit codes."""

import sys

import click

from batchrun.cli.look import show, status
from batchrun.cli.run import run
from batchrun.cli.simulate import simulate
from batchrun.errors import BatchrunError
from batchrun.version import VERSION

_EXAMPLES = """\b
Examples:
  batchrun run prompts.jsonl --prompt '{{ question }}' --model gpt-4.1 --simulate
  batchrun run prompts.jsonl --prompt '{{ question }}' --model gpt-4.1
  batchrun run jobs/overnight.toml --dry-run
  batchrun status runs/prompts
  batchrun show runs/prompts 17
"""


@click.group(
    epilog=_EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(VERSION, prog_name="batchrun")
def batchrun() -> None:
    """Run a prompt set against an OpenAI-style Responses API, and get Parquet tables.

    The same command again resumes: what is answered is never sent, nor paid for, twice.
    """


batchrun.add_command(run)
batchrun.add_command(status)
batchrun.add_command(show)
batchrun.add_command(simulate)


def main() -> None:
    """Runs the command line and exits with its code; no traceback for foreseen errors."""
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
        click.echo(f"batchrun: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
