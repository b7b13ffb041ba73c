"""`batchrun status` and `batchrun show`: they read a run directory and change nothing."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from batchrun.errors import JobError


@click.command(
    short_help="Say how a run stands, and what goes on with it.",
    epilog="\b\nExample:\n  batchrun status runs/prompts",
)
@click.argument("run_path", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
def status(run_path: Path, *, as_json: bool) -> None:
    """Say what is done, failed and left of a run, and the command that goes on.

    Works while the run goes on in another shell.
    """
    from batchrun.report.printable import printable_json
    from batchrun.report.status import read_status, render_status

    stand = read_status(run_path)
    if as_json:
        from msgspec.json import encode

        click.echo(printable_json(encode(stand).decode()))
        return
    click.echo(render_status(stand, run_path))


@click.command(
    short_help="Show one row whole.", epilog="\b\nExample:\n  batchrun show runs/prompts 17"
)
@click.argument("run_path", metavar="RUN", type=click.Path(path_type=Path))
@click.argument("custom_id", metavar="ID")
def show(run_path: Path, custom_id: str) -> None:
    """Show one row whole: its answer, tool calls, attempts and request.

    ID is the row's custom_id, or its number where the input gives no ids.
    """
    from batchrun.store.tables import find_row, read_record

    read_record(run_path)
    rows = find_row(run_path, custom_id)
    if not rows:
        raise JobError(
            f"{run_path}: no settled row has the id {custom_id!r}; "
            f"batchrun status {run_path} says what is settled"
        )
    for row in rows:
        click.echo("\n".join(_row_lines(row)))
    sys.stdout.flush()


_JSON_COLUMNS = ("output", "usage", "request", "item")


def _row_lines(row: dict[str, Any], indent: str = "") -> list[str]:
    from batchrun.report.printable import printable

    lines = []
    for name, value in row.items():
        if value is None or value == []:
            continue
        if isinstance(value, list) and isinstance(value[0], dict):
            for number, inner in enumerate(value, 1):
                lines.append(f"{indent}{name} {number}:")
                lines += _row_lines(inner, indent + "  ")
            continue
        text = _text(name, value)
        if "\n" in text:
            body = [f"{indent}  {line}" for line in text.split("\n")]
            lines += [f"{indent}{name}:", *body]
        else:
            lines.append(f"{indent}{name}: {text}")
    return [printable(line) for line in lines]


def _text(name: str, value: object) -> str:
    if name in _JSON_COLUMNS and isinstance(value, str):
        try:
            return json.dumps(json.loads(value), indent=2, ensure_ascii=False)
        except (ValueError, RecursionError):
            return value
    return value if isinstance(value, str) else str(value)
