"""Checks that every link within README and docs leads to a file, and every anchor to a heading.

    python docs/check_links.py

No network: links to other sites are passed over. Exit code 1, with each problem on a line.
"""

import re
import sys
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parent.parent
_MARKDOWN = MarkdownIt("commonmark").enable("table")
_TOCTREE = re.compile(r"^```\{toctree\}\n(.*?)^```", re.DOTALL | re.MULTILINE)
_INCLUDE = re.compile(r"^```\{include\} (\S+)$", re.MULTILINE)


def pages() -> list[Path]:
    """Every page of the project."""
    folders = (ROOT, ROOT / "docs", ROOT / "examples", ROOT / "benchmarks")
    return [path for folder in folders for path in sorted(folder.glob("*.md"))]


def links_of(path: Path) -> list[str]:
    """Targets of links and images, as they are written."""
    found = (token.attrGet("href") or token.attrGet("src") for token in _tokens(path))
    return [str(target) for target in found if target]


def problems(path: Path) -> list[str]:
    """What is wrong with the links of a page."""
    return [
        f"{path}: {link}: no such {what}"
        for link in links_of(path)
        if "://" not in link and (what := _missing(path, link))
    ]


def reached(start: Path) -> set[Path]:
    """The pages that links and tables of contents lead to, from this one on."""
    seen, ahead = {start}, [start]
    while ahead:
        path = ahead.pop()
        text = path.read_text(encoding="utf-8")
        names = [link.split("#")[0] for link in links_of(path) if "://" not in link]
        names += [f"{name}.md" for entries in _TOCTREE.findall(text) for name in entries.split()]
        found = {(path.parent / name).resolve() for name in names if name.endswith(".md")}
        ahead += found - seen
        seen |= found
        ahead = [path for path in ahead if path.exists()]
    return seen


def _missing(path: Path, link: str) -> str:
    """`file` or `heading` if that is missing, else nothing."""
    name, _, anchor = unquote(link).partition("#")
    target = path.parent / name if name else path
    if not target.exists():
        return "file"
    return "heading" if anchor and anchor not in _anchors(target) else ""


def _anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MyST make them."""
    found: set[str] = set()
    tokens = _MARKDOWN.parse(_with_included(path))
    for opening, inline in pairwise(tokens):
        if opening.type == "heading_open":
            words = "".join(child.content for child in inline.children or ())
            slug = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
            count = 0
            while (made := f"{slug}-{count}" if count else slug) in found:
                count += 1
            found.add(made)
    return found


def _with_included(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    for name in _INCLUDE.findall(text):
        text += "\n" + (path.parent / name).read_text(encoding="utf-8")
    return text


def _tokens(path: Path) -> list[Token]:
    """All inline tokens of a page."""
    blocks = _MARKDOWN.parse(path.read_text(encoding="utf-8"))
    return [child for block in blocks for child in block.children or ()]


if __name__ == "__main__":
    found = [problem for page in pages() for problem in problems(page)]
    sys.exit("\n".join(found) or None)
