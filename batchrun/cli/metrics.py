"""`batchrun metrics`: what the scores of runs add up to."""

import re
import sys
from pathlib import Path
from typing import Any

import click

from batchrun.cli.once import OnceCommand
from batchrun.cli.output import say, warn_of_missing_parts
from batchrun.cli.score_options import score_options

_EPILOG = """\b
Examples:
  batchrun metrics runs/gsm8k
  batchrun metrics runs/gsm8k --at 1,4 --format latex --columns pass@1,pass@4
  batchrun metrics runs/mmlu --by subject
  batchrun metrics runs/squad --cluster article
  batchrun metrics runs/gsm8k --require 'number.mini>=0.8'
"""


@click.command(epilog=_EPILOG, cls=OnceCommand)
@score_options
@click.option(
    "--at", metavar="K,K", help="Each k of pass@k and pass^k.  [default: number of samples]"
)
@click.option(
    "--method",
    type=click.Choice(["auto", "t", "wilson", "bootstrap"]),
    default="auto",
    show_default=True,
    help="How intervals are calculated; auto: wilson for scores of 0 and 1, t for others.",
)
@click.option(
    "--require",
    "requirements",
    metavar="TEXT",
    multiple=True,
    help="SCORER>=0.8 or SCORER.VARIANT>=0.8: exit code 1 if this is not true. Repeatable.",
)
def metrics(
    run_paths: tuple[Path, ...],
    *,
    at: str | None,
    form: str,
    columns: str | None,
    requirements: tuple[str, ...],
    **asked: Any,
) -> None:
    """Summarise the scores of runs: means, errors, pass@k, cost.

    Standard errors count questions, never samples: each question counts with the mean of its
    samples. Works during a run, with the rows that are scored.
    """
    from batchrun.evals.metrics import metrics as measure
    from batchrun.evals.metrics import read_requirement, unmet
    from batchrun.evals.tables.metrics_text import write_metrics

    wanted = [read_requirement(text) for text in requirements]
    ks = _whole_numbers(at)
    if columns is not None and at is None:
        ks = [int(k) for k in re.findall(r"pass[@^](\d+)", columns, re.IGNORECASE)]
    for path in run_paths:
        warn_of_missing_parts(path)
    found = measure(*run_paths, at=ks, **asked)
    messages = unmet(found, wanted)
    write_metrics(found, form, sys.stdout, columns)
    for message in messages:
        say(f"batchrun: {message}")
    if messages:
        sys.exit(1)


def _whole_numbers(text: str | None) -> list[int]:
    try:
        return [int(word) for word in (text or "").split(",") if word.strip()]
    except ValueError:
        raise click.UsageError(f"--at {text}: give numbers of samples, such as 1,4") from None
