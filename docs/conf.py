"""Settings of the documentation site: `make docs-site` builds it with Sphinx, MyST and furo."""

import re
import sys
from os.path import normpath
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]  # this checkout, and the extension beside this file

from batchrun.version import VERSION  # noqa: E402 - found by the line above

project = "batchrun"
version = release = VERSION
project_copyright = "the batchrun authors"
extensions = ["myst_parser", "command_help"]
myst_heading_anchors = 3
nitpicky = True
smartquotes = False  # `--` stays as it is typed
html_theme = "furo"
html_title = "batchrun"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
pygments_style = "friendly"
pygments_dark_style = "monokai"

# Pages whose text is a file outside of docs/. In docs/ there is only a link to it.
_ELSEWHERE = {
    "architecture": "ARCHITECTURE.md",
    "contributing": "CONTRIBUTING.md",
    "changelog": "CHANGELOG.md",
    "benchmarks": "benchmarks/README.md",
    "examples": "examples/README.md",
}
_PAGES = {path: f"{name}.md" for name, path in _ELSEWHERE.items()}
_PAGES["README.md"] = "getting-started.md"  # which includes the walk-through
_LINK = re.compile(r"(\[[^\]]+\])\(([^)\s:#]+)(?=[)#])")


def _read_from_elsewhere(_app: Sphinx, name: str, source: list[str]) -> None:
    """Takes the text of such a page from its file, and leads links to such files to the page."""
    folder = Path("docs")
    if path := _ELSEWHERE.get(name):
        source[0] = (ROOT / path).read_text(encoding="utf-8")
        folder = Path(path).parent

    def target(link: re.Match[str]) -> str:
        words, path = link[1], normpath(folder / link[2])
        inner = path.removeprefix("docs/")
        return f"{words}({_PAGES.get(path, inner if inner != path else f'../{path}')}"

    source[0] = _LINK.sub(target, source[0])


def setup(app: Sphinx) -> None:
    app.connect("source-read", _read_from_elsewhere)
