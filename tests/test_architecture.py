"""The rules of ARCHITECTURE.md that import-linter does not check."""

import ast
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "batchrun"
# Each library and the only places that import it.
HOMES = {
    "aiohttp": ("transport", "simulator"),
    "apprise": ("progress/apprise_process.py",),
    "bpe_openai": ("estimate/tokens.py",),
    "click": ("cli",),
    "duckdb": ("estimate/pilot.py", "evals", "reports", "runner/row_filter.py", "store"),
    "genai_prices": ("pricing/price_list.py",),
    "httptools": ("transport/answer_reader.py",),
    "huggingface_hub": ("remote/hub.py",),
    "jinja2": (
        "evals/tables/score_page.py",
        "inputs/sandbox.py",
        "inputs/template.py",
        "reports/page/page_file.py",
    ),
    "jsonschema_rs": ("dialects", "inputs", "scoring/json_match.py"),
    "math_verify": ("scoring/math_match.py",),
    "pyarrow": (
        "__init__.py",
        "evals",
        "formats",
        "inputs",
        "remote",
        "reports",
        "simulator/knowledge",
        "store",
    ),
    "ray": ("executors/ray.py",),
    "rapidfuzz": ("scoring/text_similarity.py",),
    "rich": ("cli", "estimate", "evals", "formats/text_tables.py", "progress", "reports"),
    "tenacity": ("dispatch/dispatcher.py",),
    "uvloop": ("runner/start.py", "cli/simulate.py"),
    "vl_convert": ("reports/page/charts.py",),
}
MODULES = sorted(PACKAGE.rglob("*.py"))


@cache
def imported(module: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("library", HOMES)
def test_a_library_is_imported_in_its_home_alone(library: str) -> None:
    users = [path for path in MODULES if library in imported(path)]
    names = [path.relative_to(PACKAGE).as_posix() for path in users]
    assert names, f"nobody imports {library}"
    strays = [
        name
        for name in names
        if not any(name == home or name.startswith(f"{home}/") for home in HOMES[library])
    ]
    assert strays == []


def test_no_two_modules_and_no_two_public_classes_share_a_name() -> None:
    modules, classes = defaultdict(list), defaultdict(list)
    for path in MODULES:
        if path.name != "__init__.py" and path.parent.name not in ("cli", "simulator"):
            modules[path.stem].append(path)
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                classes[node.name].append(path)
    assert [name for name, paths in modules.items() if len(paths) > 1] == []
    assert [name for name, paths in classes.items() if len(paths) > 1] == []


def test_packages_and_modules_keep_their_size() -> None:
    folders = defaultdict(list)
    for path in MODULES:
        folders[path.parent.name].append(path)
    large = {name: len(paths) for name, paths in folders.items() if len(paths) > 14}
    assert {name for name in large if name != "cli"} == set()
    lines = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert [name for name, count in lines.items() if count > 600] == []


def test_no_message_shows_a_python_object() -> None:
    # What a caller in Python sees, and what a function of the user's returned.
    own = {"__init__.py", "evals/scoring_worker.py"}
    found = [
        path.relative_to(PACKAGE).as_posix()
        for path in MODULES
        if path.relative_to(PACKAGE).parts[0] != "simulator"
        and path.relative_to(PACKAGE).as_posix() not in own
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FormattedValue) and node.conversion == ord("r")
    ]
    assert found == []


def test_each_module_says_its_job_in_its_first_line() -> None:
    for path in MODULES:
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        assert text, f"{path} has no docstring"
        assert text.splitlines()[0].rstrip(".:`)]}'").strip(), path
