"""`batchrun verify`: a run proved from its files alone."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from batchrun.store.verify import Proof


@click.command(
    epilog="\b\nExample:\n  batchrun verify runs/prompts",
)
@click.argument("run_path", metavar="RUN", type=click.Path(path_type=Path))
def verify(run_path: Path) -> None:
    """Prove from its files alone that a run is whole.

    Each row stands once in parts and journal, the tables agree with each other and with run.json,
    every page and record can be read, nothing is left over. What does not hold is listed by file
    and row, exit 1. On a run that goes on, what can be checked is.
    """
    from batchrun.formats.printable import printable
    from batchrun.store.verify import verify as prove

    proof = prove(run_path)
    click.echo(printable("\n".join(_lines(run_path, proof))))
    sys.exit(1 if proof.problems else 0)


def _lines(path: Path, proof: "Proof") -> list[str]:
    lines = [f"{path}: {_wrong(proof)}"] if proof.problems else []
    lines += [f"  {problem}" for problem in proof.problems]
    if not proof.problems:
        calls = f"{proof.tool_calls:,} tool calls agree with them"
        lines.append(f"{path}: {_rows(proof)}; {calls}; {_totals(proof)}")
    lines += [f"  note: {note}" for note in proof.notes]
    if proof.state == "live":
        lines.append("  live: a process writes to this run; verify it again once it has ended")
    return lines


def _wrong(proof: "Proof") -> str:
    count = len(proof.problems)
    return "1 thing does not hold" if count == 1 else f"{count:,} things do not hold"


def _rows(proof: "Proof") -> str:
    rows = proof.rows_in_parts + proof.rows_in_journal
    journal = f" and {proof.rows_in_journal:,} in the journal" if proof.rows_in_journal else ""
    said = "1 row, once" if rows == 1 else f"{rows:,} rows, each once"
    files = "1 part" if proof.parts == 1 else f"{proof.parts:,} parts"
    return f"{said}: {proof.rows_in_parts:,} in {files}{journal}"


def _totals(proof: "Proof") -> str:
    if proof.totals_agree:
        return "the totals agree"
    why = {"live": "it goes on", "running": "its last command was killed"}
    reason = why.get(proof.state, f"its last command {proof.state}")
    return f"totals not compared, since {reason}"
