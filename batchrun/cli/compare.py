"""`batchrun compare`: variants of a run, or runs, question by question."""

import sys
from pathlib import Path
from typing import Any

import click

from batchrun.cli.once import OnceCommand
from batchrun.cli.output import say, warn_of_missing_parts
from batchrun.cli.score_options import score_options

_EPILOG = """\b
Examples:
  batchrun compare runs/gsm8k --variant base --variant new
  batchrun compare runs/monday runs/tuesday --scorer number
  batchrun compare runs/gsm8k --variant base --variant new --flips flips.parquet
"""


@click.command(epilog=_EPILOG, cls=OnceCommand)
@score_options
@click.option(
    "--variant",
    "variants",
    metavar="NAME",
    multiple=True,
    help="Repeatable: the others are compared with the first. With several runs: one for all, or "
    "one for each; without it, variants of the same name are compared.",
)
@click.option(
    "--flips",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write the questions whose shares of right answers differ to FILE, as Parquet.",
)
def compare(
    run_paths: tuple[Path, ...], *, flips: Path | None, form: str, columns: str | None, **asked: Any
) -> None:
    """Compare variants of a run, or several runs, over the questions that both have scored.

    The difference is taken question by question, so that the difficulty of a question cancels out.
    All are compared with the first; the p values of several comparisons are corrected (Holm).
    """
    from batchrun.evals.compare import compare as compare_runs
    from batchrun.evals.tables.compare_text import write_comparisons

    for path in run_paths:
        warn_of_missing_parts(path)
    found = compare_runs(*run_paths, flips=flips, **asked)
    write_comparisons(found, form, sys.stdout, columns)
    if flips is not None:
        say(f"{flips}: {sum(line.flips for line in found.lines):,} flipped")
