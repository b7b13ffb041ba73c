"""Scores a run of questions whose correct answers were carried along.

    python examples/score_answers.py RUN [--answer answer] [--by topic]

A row is right if the end of its `output_text` (the text after the last "Answer:", or its last line)
agrees with the carried column: as a number if that is one, and otherwise word for word. If a
carried answer explains its steps first (`... #### 42`), only the text after its last `####` counts.
"""

import argparse
import re
from collections import Counter
from pathlib import Path

import pyarrow.dataset as ds

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_MARK = re.compile(r"####|answer\s*:", re.IGNORECASE)


def end_of(text: str) -> str:
    """The final answer that the text gives."""
    lines = _MARK.split(text)[-1].strip().splitlines()
    return lines[-1].strip() if lines else ""


def is_right(output_text: str | None, answer: str) -> bool:
    """Whether the text gives this answer."""
    if not output_text:
        return False
    given, wanted = end_of(output_text), end_of(answer)
    if _NUMBER.fullmatch(wanted):
        numbers = _NUMBER.findall(given)
        return bool(numbers) and _value(numbers[-1]) == _value(wanted)
    return _words(given) == _words(wanted)


def _value(number: str) -> float:
    return float(number.replace(",", ""))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def main() -> None:
    parser = argparse.ArgumentParser(description="Share of right answers.")
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory")
    parser.add_argument("--answer", default="answer", metavar="COLUMN", help="carried answer")
    parser.add_argument("--by", metavar="COLUMN", help="carried column to group by")
    options = parser.parse_args()
    if not (options.run / "responses").is_dir():
        parser.error(f"{options.run}/responses does not exist; give the directory of a run")
    names = ["output_text", options.answer, *([options.by] if options.by else [])]
    dataset = ds.dataset(options.run / "responses", format="parquet")
    absent = [name for name in names if name not in dataset.schema.names]
    if absent:
        parser.error(f"{options.run} carries no column {absent[0]}; it has {dataset.schema.names}")
    rows, right = Counter[str](), Counter[str]()
    for row in dataset.to_table(columns=names).to_pylist():
        group = str(row[options.by]) if options.by else "all"
        rows[group] += 1
        right[group] += is_right(row["output_text"], str(row[options.answer]))
    for group in sorted(rows):
        print(f"{group}: {right[group]} of {rows[group]} right ({right[group] / rows[group]:.1%})")
    if options.by:
        print(f"all: {right.total()} of {rows.total()} right ({right.total() / rows.total():.1%})")


if __name__ == "__main__":
    main()
