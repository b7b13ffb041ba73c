"""Writes docs/protocol.md from statements.toml. Run it by hand when a statement has changed."""

import tomllib
from pathlib import Path
from typing import Any

STATEMENTS = Path(__file__).with_name("statements.toml")
DOCS = Path(__file__).parents[2] / "docs" / "protocol.md"

_SECTIONS = {
    "0": "Ten rules",
    "A.1": "Endpoints",
    "A.2": "Request bodies",
    "A.3": "The response object",
    "A.4": "Output items",
    "A.5": "Streams",
    "A.6": "Background",
    "B.1": "Error bodies",
    "B.2": "What follows an error",
    "B.4": "Headers",
    "B.5": "Idempotency",
    "B.6": "Reselling gateways",
}
_HEAD = """# The protocol, as it is met in the wild

What servers and gateways may send, what batchrun does about it, and the test that holds it to that.
Made by `tests/protocol/make_docs.py` from `tests/protocol/statements.toml`; do not edit it here.
"""


def read_statements(path: Path = STATEMENTS) -> list[dict[str, Any]]:
    statements: list[dict[str, Any]] = tomllib.loads(path.read_text("utf-8"))["statement"]
    return statements


def section_of(statement_id: str) -> str:
    """`0.3.error` stands in `0`, `A.4.mcp` in `A.4`."""
    return "0" if statement_id.startswith("0.") else ".".join(statement_id.split(".")[:2])


def render(statements: list[dict[str, Any]]) -> str:
    lines = [_HEAD]
    last = ""
    for statement in statements:
        section = section_of(statement["id"])
        if section != last:
            lines += ["", f"## {section} {_SECTIONS[section]}", ""]
            last = section
        lines.append(f"- **{statement['id']}** {statement['says']}")
        lines += [f"  - `{test}`" for test in statement["tests"]]
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"


if __name__ == "__main__":
    DOCS.write_text(render(read_statements()), encoding="utf-8")
