"""`batchrun verify`: a run proved from its files alone."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from batchrun.cli.once import OnceCommand
from batchrun.cli.run_param import SCORED_RUN

if TYPE_CHECKING:
    from batchrun.store.verify import Proof


@click.command(epilog="\b\nExample:\n  batchrun verify runs/prompts", cls=OnceCommand)
@click.argument("run_path", metavar="RUN", type=SCORED_RUN)
def verify(run_path: Path) -> None:
    """Check from its files alone that a run is intact.

    Each row exists once in parts and journal, the tables agree with each other and with run.json,
    every page and record can be read, and no file is left over. Problems are listed by file and
    row, with exit code 1. During a run, it checks only what cannot change.
    """
    from batchrun.formats.printable import printable
    from batchrun.remote.run_link import run_name
    from batchrun.store.verify import verify as prove

    proof = prove(run_path)
    click.echo(printable("\n".join([f"{run_name(run_path)}: {_result(proof)}", *_details(proof)])))
    sys.exit(1 if proof.problems else 0)


def _result(proof: "Proof") -> str:
    from batchrun.formats.amounts import plural

    if proof.problems:
        return plural(len(proof.problems), "problem")
    rows = plural(proof.rows_in_parts + proof.rows_in_journal, "row, once", "rows, each once")
    journal = f" and {proof.rows_in_journal:,} in the journal" if proof.rows_in_journal else ""
    reasons = {"live": "it is still running", "running": "its last command was killed"}
    reason = reasons.get(proof.state, f"its last command {proof.state}")
    return (
        f"{rows}: {proof.rows_in_parts:,} in {plural(proof.parts, 'part')}{journal}; "
        f"{plural(proof.tool_calls, 'tool call agrees', 'tool calls agree')} with them; "
        + ("the totals agree" if proof.totals_agree else f"totals not compared, since {reason}")
    )


def _details(proof: "Proof") -> list[str]:
    lines = [f"  {problem}" for problem in proof.problems]
    lines += [f"  note: {note}" for note in proof.notes]
    if proof.state == "live":
        lines.append("  live: a process writes to this run; verify it again once it has ended")
    return lines
