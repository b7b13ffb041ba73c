"""README and docs are true: their examples happen, and they name all there is and nothing else."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest

from batchrun.cli.main import batchrun, find_command
from batchrun.errors import ErrorKind
from batchrun.job.job_file import load_job
from batchrun.job.scorer_sections import KINDS
from batchrun.job.sections import TOLD_KINDS, Job, PriceJob
from batchrun.progress.summary import Summary
from batchrun.simulator.settings import Fault
from batchrun.simulator.stats import Stats
from batchrun.store import columns
from docs import check_links, command_help
from tests.doc_examples import DOCS, ROOT, block, check_console, page, section
from tests.waiting import HANG_S

PAGES = {"README": page("README"), **{path.stem: page(path.stem) for path in DOCS.glob("*.md")}}
# `protocol` is made from statements and has other rules.
BY_HAND = "\n".join(text for name, text in PAGES.items() if name != "protocol")


def quoted(text: str) -> set[str]:
    """What is between backticks."""
    return set(re.findall(r"`([^`\n]+)`", text))


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder where the walk-through's prompt set lies, and an environment to run in."""
    folder = tmp_path_factory.mktemp("walk")
    (folder / "prompts.jsonl").write_text(
        block("README", "A walk-through", "json"), encoding="utf-8"
    )
    for name in ("examples", "jobs"):  # some sections are written for the project's folder
        (folder / name).symlink_to(ROOT / name)
    commands = folder / "bin"
    commands.mkdir()
    script = commands / "batchrun"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m batchrun "$@"\n')
    script.chmod(0o700)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PYTHONIOENCODING": "utf-8",
        "COLUMNS": "100",
        "HOME": str(folder),
        "XDG_CONFIG_HOME": str(folder / ".config"),
    }
    if shutil.which("batchrun", path=environment["PATH"]) is None:
        environment["PATH"] = f"{commands}{os.pathsep}{environment['PATH']}"
    return folder, environment


def test_the_walk_through_is_what_happens(walked: tuple[Path, dict[str, str]]) -> None:
    folder, environment = walked
    # The other sections go on from where the walk-through ends.
    sections = (
        ("README", "A walk-through"),
        ("cost", "What a run will cost"),
        ("cost", "What a run has cost"),
        ("cost", "Where prices come from"),
        ("results", "In DuckDB, pandas and Polars"),
        ("results", "Your own SQL"),
        ("results", "A report of a run"),
    )
    for name, title in sections:
        check_console(name, title, folder, environment)


def test_the_library_example_runs(walked: tuple[Path, dict[str, str]]) -> None:
    folder, environment = walked
    done = subprocess.run(
        [sys.executable, "-c", block("library", "A run in Python", "python")],
        cwd=folder,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=HANG_S,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "0 3 0\n"), done.stderr


def commands() -> dict[str, click.Command]:
    return {name: find_command(name) for name in batchrun.commands}


def options(command: click.Command) -> set[str]:
    return {
        name
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for name in (*parameter.opts, *parameter.secondary_opts)
    }


@pytest.mark.parametrize("name", sorted(commands()))
def test_each_command_and_its_options_are_explained(name: str) -> None:
    told = {word.split()[0].rstrip(",") for word in quoted(section("commands", f"batchrun {name}"))}
    if name in {"run", "estimate"}:  # `estimate` says that it takes those of `run` too
        table = section("job-file", "Options and job keys")
        told |= {word.split()[0].split("=")[0] for word in quoted(table)}
    told |= {"-h", "--help"} & quoted(page("commands"))
    assert not options(commands()[name]) - told


def test_the_command_page_shows_the_help_of_each_command() -> None:
    shown = re.findall(r"^```\{command\} (\w+)$", page("commands"), re.MULTILINE)
    assert sorted(shown) == sorted(commands())


@pytest.mark.parametrize("name", sorted(commands()))
def test_the_help_on_the_command_page_names_each_option(name: str) -> None:
    names = {
        word.rstrip(",")
        for head, _ in command_help.options_of(command_help.context_of(name))
        for word in head.replace("|", " ").split()
    }
    assert not options(commands()[name]) - names


# Those of Slurm and systemd that runs without anybody there need, and of Ray.
OF_OTHERS = {
    *("--address", "--block", "--exclude", "--generate", "--head", "--node-ip-address"),
    *("--nodes", "--ntasks", "--ntasks-per-node", "--num-cpus", "--overlap"),
    *("--cpus-per-task", "--dependency", "--job-name", "--mem", "--open-mode", "--requeue"),
    *("--signal", "--time", "--failed", "--profile"),
}


def test_the_docs_name_no_option_that_does_not_exist() -> None:
    known = {"--version", "--help"}.union(*(options(command) for command in commands().values()))
    known |= OF_OTHERS
    told = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", BY_HAND))
    assert not told - known


def test_the_docs_name_no_command_that_does_not_exist() -> None:
    shell = "".join(re.findall(r"^```(?:sh|console)\n(.*?)^```", BY_HAND, re.DOTALL | re.MULTILINE))
    told = set(re.findall(r"^(?:\$ )?batchrun ([a-z]+)", shell, re.MULTILINE))
    told |= set(re.findall(r"`batchrun ([a-z]+)", BY_HAND))
    assert told == set(commands())


def job_keys() -> set[str]:
    return {
        f"{part.name}.{inner.name}"
        for part in msgspec.structs.fields(Job)
        if isinstance(part.type, type) and issubclass(part.type, msgspec.Struct)
        for inner in msgspec.structs.fields(part.type)
    }


def test_the_job_file_in_the_docs_is_read_and_has_each_key(tmp_path: Path) -> None:
    text = block("job-file", "The whole file", "toml")
    (tmp_path / "job.toml").write_text(text, encoding="utf-8")
    load_job(tmp_path / "job.toml")
    tree = tomllib.loads(text)
    prices, aliases = tree.pop("pricing"), tree.pop("aliases")
    assert [scorer.name for scorer in load_job(tmp_path / "job.toml").scorers] == [
        scorer["name"] for scorer in tree.pop("scorers")
    ]
    assert load_job(tmp_path / "job.toml").aliases == aliases
    assert {key for price in prices.values() for key in price} == set(PriceJob.__struct_fields__)
    told = {f"{name}.{key}" for name, table in tree.items() for key in table if name != "request"}
    assert told == job_keys()


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_scorer_and_its_options_are_explained(kind: str) -> None:
    told = quoted(section("evals", "Scoring"))
    assert {kind, *KINDS[kind].__struct_fields__} <= told


def test_the_defaults_in_the_docs_are_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(
        block("job-file", "The whole file", "toml"), encoding="utf-8"
    )
    told, made = load_job(tmp_path / "job.toml"), load_job("prompts.jsonl")
    for name in ("concurrency", "outage_s", "hedge"):
        assert getattr(told.limits, name) == getattr(made.limits, name)
    for name in ("requests_per_minute", "tokens_per_minute", "max_cost_usd", "max_failures"):
        assert getattr(made.limits, name) is None
    assert told.retry == msgspec.structs.replace(made.retry, words=told.retry.words)
    assert made.retry.words == {}
    assert set(TOLD_KINDS) <= quoted(section("job-file", "Words of your gateway"))
    for name in ("timeout_s", "connect_timeout_s", "idle_timeout_s", "max_response_bytes"):
        assert getattr(told.endpoint, name) == getattr(made.endpoint, name)
    for name in ("part_rows", "part_bytes"):
        assert getattr(told.output, name) == getattr(made.output, name)


def test_the_azure_settings_in_the_docs_are_read(tmp_path: Path) -> None:
    text = '[input]\npath = "x.jsonl"\n' + block("endpoints", "Other servers", "toml")
    (tmp_path / "job.toml").write_text(text, encoding="utf-8")
    endpoint = load_job(tmp_path / "job.toml").endpoint
    assert endpoint.headers == {"api-key": "env:AZURE_OPENAI_API_KEY"}


def columns_told(table: str) -> list[str]:
    """Names in the first cells of the table that follows the word."""
    text = section("results", f"The table `{table}`").split(f"`{table}`, one row for each", 1)[1]
    names: list[str] = []
    for line in text.splitlines():
        if line.startswith("| "):
            names += re.findall(r"`(\w+)`", line.split("|")[1])
        elif names:
            break
    return names


def test_each_column_is_in_the_docs_in_its_order() -> None:
    assert columns_told("responses") == list(columns.own_columns())
    assert columns_told("tool_calls") == columns.tool_call_schema().names


def test_the_fields_of_lists_are_in_the_docs() -> None:
    told = quoted(section("results", "The table `responses`"))
    schema = columns.response_schema(columns.NO_COLUMNS)
    lists = (schema.field(name).type for name in ("attempts", "citations"))
    inner = [field.name for kind in lists for field in kind.value_type]
    assert not set(inner) - told


def test_each_kind_of_error_is_in_the_docs() -> None:
    told = quoted(section("errors", "What happens to a failed attempt"))
    assert not {kind.value for kind in ErrorKind} - told


def test_links_lead_to_files_and_headings_that_exist() -> None:
    assert len(check_links.pages()) > len(PAGES)
    assert sum(len(check_links.links_of(path)) for path in check_links.pages()) > 50
    assert not [problem for path in check_links.pages() for problem in check_links.problems(path)]


def test_a_link_without_a_file_or_a_heading_is_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# A `b`: c\n\n## Again\n\n## Again\n", encoding="utf-8")
    text = "[1](other.md#a-b-c) [2](other.md#again-1) [3](https://example.org/none) [4](none.md)\n"
    text += "[5](other.md#none) [6](#none) ![7](none.png) `[8](code.md)`\n"
    (tmp_path / "page.md").write_text(text, encoding="utf-8")
    found = [problem.split(": ")[1] for problem in check_links.problems(tmp_path / "page.md")]
    assert found == ["none.md", "other.md#none", "#none", "none.png"]


def test_every_page_is_reached_from_the_readme_and_the_index() -> None:
    for start in (ROOT / "README.md", DOCS / "index.md"):
        assert not set(DOCS.glob("*.md")) - {DOCS / "index.md"} - check_links.reached(start)


def test_the_simulator_page_names_each_option_fault_and_count() -> None:
    told = quoted(page("simulator"))
    words = {word.split()[0] for word in told}
    assert not options(commands()["simulate"]) - words
    assert not set(Fault) - words
    assert not Stats().totals().keys() - words


def test_the_example_on_the_simulator_page_runs() -> None:
    lines = block("simulator", "In your own tests", "python").replace(
        "    ...", "    return base_url"
    )
    imports, _, body = lines.partition("\n\n")
    namespace: dict[str, Any] = {}
    indented = "".join(f"    {line}\n" for line in body.splitlines())
    exec(f"{imports}\nasync def example():\n{indented}", namespace)  # noqa: S102 - ours
    assert asyncio.run(namespace["example"]()).startswith("http://127.0.0.1:")


@pytest.mark.parametrize("name", ["durability", "durability-tests"])
def test_the_tests_that_the_docs_name_are_there(name: str) -> None:
    told = re.findall(r"`(?:tests/)?([\w/]*test_\w+\.py)`", page(name))
    assert told
    assert not {path for path in told if not (ROOT / "tests" / path).is_file()}


def test_the_summary_page_names_each_field_in_its_order() -> None:
    fields = page("summary").partition("\n## ")[0]
    names = [line.split("|")[1] for line in fields.splitlines() if line[:3] == "| `"]
    assert re.findall(r"`(\w+)`", " ".join(names)) == list(Summary.__struct_fields__)


@pytest.mark.parametrize("name", ["ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_the_modules_that_the_pages_about_the_code_name_exist(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    told = set(re.findall(r"`([\w/]+\.py)`", text)) - {"inputs/FORMAT.py"}  # one to be written
    there = {
        path.name for folder in ("batchrun", "tests") for path in (ROOT / folder).rglob("*.py")
    }
    assert not {Path(module).name for module in told} - there
    folders = (ROOT, ROOT / "batchrun")
    paths = {module for module in told if "/" in module}
    assert not {path for path in paths if not any((at / path).is_file() for at in folders)}


def test_the_architecture_page_names_each_package() -> None:
    named = {
        name.removesuffix(".py")
        for name in quoted((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8"))
    }
    there = {path.stem for path in (ROOT / "batchrun").iterdir() if path.suffix in ("", ".py")}
    assert not {name for name in there if name[0] != "_"} - named
