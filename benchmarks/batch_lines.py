"""Input for the speed benchmark: OpenAI Batch lines, the same each time. Only the standard library.

Peers read them too, in environments of their own.
"""

import json
import random
from itertools import islice
from pathlib import Path
from typing import Any

MODEL = "gpt-4.1-mini"  # known to the price list and to every peer
_TEXTS = 499  # different texts; a prime, so that no reader's batch sees a pattern
_VOCABULARY = (
    "the of and to in is that for it as with was on be by this are from at or an have not which "
    "model answer question table row column measure network request response token limit budget "
    "journal parquet morning evening river mountain garden window kitchen teacher letter history "
    "question science number machine language picture summer winter country village market paper"
)


def write_lines(path: Path, rows: int, line_bytes: int, first: int = 0) -> None:
    """Appends rows `first` to `first + rows`, each a line of about so many bytes."""
    draw = random.Random(11)
    heads = [_line(0, "", 0)]
    room = max(1, line_bytes - len(heads[0]) - 12)
    texts = [_text(draw, room) for _ in range(_TEXTS)]
    with path.open("a") as file:
        for row in range(first, first + rows):
            file.write(_line(row, texts[row % _TEXTS], row))


def write_lines_with_tools(path: Path, rows: int, line_bytes: int) -> None:
    """Lines of about so many bytes, half of them messages and half schemas of tools."""
    draw = random.Random(12)
    with path.open("w") as file:
        for row in range(rows):
            body: dict[str, Any] = {"model": MODEL, "input": [], "tools": []}
            for half, make in (("input", _message), ("tools", _tool)):
                size = 0
                while size < line_bytes // 2 - 150:
                    body[half].append(make(draw, len(body[half])))
                    size += len(json.dumps(body[half][-1])) + 2
            line = {"custom_id": f"row-{row}", "method": "POST", "url": "/v1/responses"}
            file.write(json.dumps({**line, "body": {**body, "max_output_tokens": 512}}) + "\n")


def _message(draw: random.Random, number: int) -> dict[str, Any]:
    role = ("system", "user", "assistant")[min(number, 1 + number % 2)]
    return {"role": role, "content": _text(draw, draw.randrange(100, 500))}


def _tool(draw: random.Random, number: int) -> dict[str, Any]:
    words = draw.sample(_VOCABULARY.split(), 4)
    return {
        "type": "function",
        "name": f"{words[0]}_{words[1]}_{number}",
        "description": _text(draw, 80),
        "parameters": {
            "type": "object",
            "properties": {
                word: {"type": kind, "description": _text(draw, 40)}
                for word, kind in zip(
                    words, ("string", "integer", "boolean", "string"), strict=True
                )
            },
            "required": words[:2],
        },
    }


def read_bodies(path: Path, rows: int) -> list[dict[str, Any]]:
    """The bodies of the first so many lines."""
    with path.open() as file:
        return [json.loads(line)["body"] for line in islice(file, rows)]


def _text(draw: random.Random, room: int) -> str:
    return " ".join(draw.choices(_VOCABULARY.split(), k=room // 4))[:room]


def _line(row: int, text: str, number: int) -> str:
    # Not by `json.dumps`, which takes ten times as long; no word needs an escape.
    return (
        f'{{"custom_id": "row-{row}", "method": "POST", "url": "/v1/responses", "body": '
        f'{{"model": "{MODEL}", "input": "Row {number}: {text}", "temperature": 0.7, '
        f'"max_output_tokens": 512}}}}\n'
    )
