"""The examples of README and docs: what their pages hold, and whether it is what happens."""

import difflib
import re
import subprocess
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path

from tests.waiting import HANG_S

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"


def page(name: str) -> str:
    """The text of a page in docs/, or of the README."""
    path = ROOT / "README.md" if name == "README" else DOCS / f"{name}.md"
    return path.read_text(encoding="utf-8")


def section(name: str, title: str) -> str:
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", page(name), re.DOTALL | re.MULTILINE)
    assert found, f"the page {name} has no section {title!r}"
    return found[1]


def block(name: str, title: str, language: str) -> str:
    text = section(name, title)
    found = re.search(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert found, f"the section {title!r} of {name} has no block of {language}"
    return found[1]


def typed_and_shown(name: str, title: str) -> Iterator[tuple[str, str]]:
    """A section's commands, each with the output below it."""
    found = re.findall(r"^```console\n(.*?)^```", section(name, title), re.DOTALL | re.MULTILINE)
    assert found, f"the section {title!r} of {name} has no commands"
    lines = "".join(found).splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("$ ")]
    for start, end in pairwise([*starts, len(lines)]):
        yield lines[start].removeprefix("$ "), "\n".join(lines[start + 1 : end])


def settled(output: str) -> str:
    """The output without what differs from run to run: times, rates, free space, progress."""
    kept = [
        line.rstrip()
        for line in output.splitlines()
        if not line.startswith(("running: ", "planning: ", "scoring: "))
    ]
    text = "\n".join(kept).strip()
    # The price list that is installed, and how old it is today.
    text = re.sub(r"^ *warning: the price list .*(\n {4}.*)*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"genai-prices [\d.]+", "genai-prices N", text)
    text = re.sub(r": [\d,]+ models, newest check [\d-]+, [\d,]+ days\s+ago", ": N models", text)
    text = re.sub(r"checked \d{4}-\d{2}-\d{2}", "checked N", text)
    text = re.sub(r"[\d.]+ [kMGT]?B free", "N free", text)
    text = re.sub(r"from [\d: -]+ to [\d: -]+ UTC; [\d.:]+( s)?", "from N to N UTC; N s", text)
    text = re.sub(r"[\d,.]+ rows/s over [\d.:]+( s)?", "N rows/s over N s", text)
    # A latency at the end of a table's line.
    return re.sub(r" +\d+\.\d+ s(?=$| \\\\$)", " N s", text, flags=re.MULTILINE)


def check_console(name: str, title: str, folder: Path, environment: Mapping[str, str]) -> None:
    """The commands of a section end well and print what the page shows."""
    for command, shown in typed_and_shown(name, title):
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            timeout=HANG_S,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}"
        difference = difflib.unified_diff(
            settled(shown).splitlines(), settled(done.stdout).splitlines(), "docs", command
        )
        assert not list(difference), "\n".join([f"$ {command}", done.stdout])
