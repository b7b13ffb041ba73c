"""`batchrun score`: the answers of a run scored, as often as one likes."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from batchrun.cli.once import OnceCommand
from batchrun.cli.output import print_json, warn_of_missing_parts
from batchrun.cli.run_param import SCORED_RUN

if TYPE_CHECKING:
    from batchrun.evals.score_run import ScorerResult

_EPILOG = """\b
Examples:
  batchrun score runs/eval
  batchrun score runs/eval scorers.toml
  batchrun score runs/eval --scorer exact --again

\b
Exit codes:
  0  every row that can be scored has a score
  1  the run directory cannot be read or written
  2  a scorer, a target or the run is wrong; no score was changed
  4  a scorer failed for some rows, which have no score
"""


@click.command(epilog=_EPILOG, cls=OnceCommand)
@click.argument("run_path", metavar="RUN", type=SCORED_RUN)
@click.argument("file", metavar="[FILE]", required=False, type=click.Path(path_type=Path))
@click.option(
    "--scorer", "only", multiple=True, metavar="NAME", help="Only this scorer; repeatable."
)
@click.option("--again", is_flag=True, help="Score all rows, also those that did not change.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def score(
    run_path: Path, file: Path | None, only: tuple[str, ...], *, again: bool, as_json: bool
) -> None:
    """Score the stored answers of RUN; nothing is sent.

    The scorers are the [[scorers]] of FILE (.toml), or of the job file that made the run. Each
    writes RUN/scores/NAME/scores.parquet. Only rows that are new or changed, or whose scorer
    changed, are scored again.
    """
    from batchrun.evals.score_run import score as score_answers
    from batchrun.formats.printable import printable
    from batchrun.progress.planning import Planning

    warn_of_missing_parts(run_path)
    with Planning(sys.stderr, word="scoring") as said:
        results = score_answers(run_path, file, only=only, again=again, doing=said.doing)
    if as_json:
        print_json([_as_json(one) for one in results])
    else:
        lines = [line for one in results for line in _lines(one)]
        if (so_far := _so_far(run_path)) is not None:
            lines.append(f"note: {so_far}")
        click.echo(printable("\n".join(lines)))
    sys.exit(4 if any(one.raised for one in results) else 0)


def _so_far(run: Path) -> str | None:
    """That some rows have no outcome, and so no score; null where all have one."""
    from batchrun.progress.summary_text import so_far_in_words
    from batchrun.store.reading import read_record, read_totals, state_now

    record = read_record(run)
    stored = read_totals(run).rows + record.gone.rows
    return so_far_in_words(record, state_now(run, record), stored)


def _lines(result: "ScorerResult") -> list[str]:
    """`exact: 4 of 5 scored, mean 0.75, 3 passed; …`."""
    lines = []
    for metric, tally in result.metrics.items():
        name = result.name if metric == "value" else f"{result.name}/{metric}"
        said = f"{name}: {tally.scored:,} of {tally.rows:,} scored"
        if tally.mean is not None:
            said += f", mean {tally.mean:.4g}, {tally.passed:,} passed"
        if tally.scored < tally.rows and tally.bounds is not None:
            low, high = tally.bounds
            ends = f"the mean is between {low:.4g} and {high:.4g}"
            said += f"; {ends} if the rest were all wrong or all right"
        lines.append(said)
    unchanged = max((tally.rows for tally in result.metrics.values()), default=0) - result.fresh
    raised = f", but the scorer failed for {result.raised:,}" if result.raised else ""
    rest = f"; {unchanged:,} unchanged" if unchanged > 0 else ""
    if result.corrections:
        lines.append(f"  {result.corrections}")
    lines.append(f"  {result.fresh:,} scored now{raised}{rest}: {result.path}")
    return lines


def _as_json(result: "ScorerResult") -> dict[str, object]:
    return {
        "scorer": result.name,
        "file": str(result.path),
        "scored_now": result.fresh,
        "raised": result.raised,
        "corrections": result.corrections or None,
        "metrics": {
            metric: {
                "rows": tally.rows,
                "scored": tally.scored,
                "passed": tally.passed,
                "mean": tally.mean,
                "between": tally.bounds,
            }
            for metric, tally in result.metrics.items()
        },
    }
