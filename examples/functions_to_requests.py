"""Turns function-calling rows into requests with tools.

    python examples/functions_to_requests.py IN.jsonl OUT.jsonl

IN has rows in the format of the Berkeley Function Calling Leaderboard: `id`, `question` (turns,
each a list of messages) and `function` (schemas with the names of Python's types). OUT gets rows
for `batchrun run`: `custom_id`, `input` and `tools`.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

# Names of types that JSON Schema does not have; `any` becomes no type at all.
TYPES = {
    "dict": "object",
    "float": "number",
    "double": "number",
    "int": "integer",
    "long": "integer",
    "bool": "boolean",
    "str": "string",
    "char": "string",
    "list": "array",
    "tuple": "array",
}
ANY = "any"


def json_schema(schema: Any) -> Any:
    """The schema with the type names of JSON Schema, at every depth."""
    if not isinstance(schema, dict):
        return schema
    made: dict[str, Any] = {}
    for key, value in schema.items():
        match key:
            case "type" if isinstance(value, str):
                if value.lower() != ANY:
                    made[key] = TYPES.get(value.lower(), value.lower())
            case "properties":
                made[key] = {name: json_schema(inner) for name, inner in value.items()}
            case "items" | "additionalProperties":
                made[key] = json_schema(value)
            case "anyOf" | "oneOf" | "allOf":
                made[key] = [json_schema(inner) for inner in value]
            case _:
                made[key] = value
    return made


def tool_name(name: str, taken: set[str]) -> str:
    """The name in the characters that the API accepts, unique within a row."""
    base = re.sub(r"[^a-zA-Z0-9_-]", "_", name)[:64] or "function"
    fitting, count = base, 1
    while fitting in taken:
        count += 1
        fitting = f"{base[: 63 - len(str(count))]}_{count}"
    taken.add(fitting)
    return fitting


def request(row: dict[str, Any]) -> dict[str, Any]:
    """One row as a request: all turns as one conversation, all functions as tools."""
    taken: set[str] = set()
    tools = [
        {
            "type": "function",
            "name": tool_name(function["name"], taken),
            "description": function.get("description", ""),
            "parameters": json_schema(function["parameters"]),
            "strict": False,
        }
        for function in row["function"]
    ]
    messages = [message for turn in row["question"] for message in turn]
    return {"custom_id": row["id"], "input": messages, "tools": tools}


def main() -> None:
    parser = argparse.ArgumentParser(description="Function-calling rows to requests with tools.")
    parser.add_argument("source", type=Path, metavar="IN")
    parser.add_argument("target", type=Path, metavar="OUT")
    options = parser.parse_args()
    count = 0
    with options.source.open(encoding="utf-8") as rows, options.target.open("w") as requests:
        for line in rows:
            if line.strip():
                requests.write(json.dumps(request(json.loads(line))) + "\n")
                count += 1
    print(f"{count} requests in {options.target}")


if __name__ == "__main__":
    main()
