"""The wheel and the sdist hold what they should, and do what the README shows once installed.

`make test-wheel` puts uv and the checks of metadata into `.tools/`. Packages come from the index
that pip and uv use; each environment is removed when its test ends.
"""

import email
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from email.message import Message
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest

from batchrun.version import VERSION
from tests.doc_examples import ROOT, block, check_console

pytestmark = [pytest.mark.wheel, pytest.mark.timeout(1200)]

TOOLS = ROOT / ".tools" / "bin"
UV = str(TOOLS / "uv")
PROJECT_FILES = {"README.md", "LICENSE", "CHANGELOG.md", "pyproject.toml"}
WHEEL, SDIST = f"batchrun-{VERSION}-py3-none-any.whl", f"batchrun-{VERSION}.tar.gz"
RUN = "runs/prompts-simulated"  # of the walk-through
LIMIT_S = 600
TOLD = (
    *("--prompt", "{{ question }}", "--model", "gpt-6.1-terra", "--simulate", "--dry-run"),
    *("--notify", "json://localhost"),
)
ON_RAY = (
    *("--prompt", "{{ question }}", "--model", "gpt-6.1-terra", "--simulate"),
    *("--executor", "ray", "--workers", "2", "-o", "on-ray"),
)


class Built(NamedTuple):
    wheel: Path
    sdist: Path


class Installed(NamedTuple):
    """An environment where batchrun is installed, and an empty folder to work in."""

    folder: Path
    variables: dict[str, str]

    def run(self, *words: object) -> subprocess.CompletedProcess[str]:
        return run(*words, folder=self.folder, variables=self.variables)


Install = Callable[[str, Path, str], Installed]


def run(
    *words: object, folder: Path = ROOT, variables: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    if variables is None:  # without this checkout, which other tests run
        variables = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [str(word) for word in words],
        cwd=folder,
        env=variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=LIMIT_S,
        check=False,
    )


def succeed(*words: object) -> str:
    done = run(*words)
    assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def pip(*words: object) -> str:
    return succeed(sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *words)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The sdist, and the wheel made from it."""
    folder = tmp_path_factory.mktemp("dist")
    succeed(UV, "build", "--quiet", "--out-dir", folder, ROOT)
    assert {path.name for path in folder.iterdir()} - {".gitignore"} == {WHEEL, SDIST}
    return Built(folder / WHEEL, folder / SDIST)


@pytest.fixture
def install() -> Iterator[Install]:
    """`install(installer, what, extra)`, into an environment of its own."""
    with TemporaryDirectory(prefix="batchrun-wheel-") as name:

        def into(installer: str, what: Path, extra: str) -> Installed:
            env, folder = Path(name, "env"), Path(name, "work")
            folder.mkdir()
            wanted = f"{what}[{extra}]" if extra else str(what)
            python = env / "bin" / "python"
            if installer == "pip":
                succeed(sys.executable, "-m", "venv", env)
                succeed(python, "-m", "pip", "install", "--quiet", wanted)
                succeed(python, "-m", "pip", "check")
            else:
                succeed(UV, "venv", "--quiet", "--python", sys.executable, env)
                succeed(UV, "pip", "install", "--quiet", "--python", python, wanted)
                succeed(UV, "pip", "check", "--python", python)
            variables = {
                "PATH": os.pathsep.join([str(env / "bin"), "/usr/bin", "/bin"]),
                "HOME": str(folder),
                "PYTHONIOENCODING": "utf-8",
                "COLUMNS": "100",
            }
            return Installed(folder, variables)

        yield into


def package_files() -> set[str]:
    files = {path.relative_to(ROOT) for path in (ROOT / "batchrun").rglob("*") if path.is_file()}
    return {path.as_posix() for path in files if "__pycache__" not in path.parts}


def members(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def metadata_of(built: Built) -> Message:
    return email.message_from_bytes(members(built.wheel)[f"batchrun-{VERSION}.dist-info/METADATA"])


def test_the_wheel_holds_the_package_and_nothing_else(built: Built) -> None:
    info = ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")
    assert {"batchrun/py.typed", "batchrun/cli/main.py"} < package_files()
    assert set(members(built.wheel)) == package_files() | {
        f"batchrun-{VERSION}.dist-info/{name}" for name in info
    }


def test_the_sdist_holds_what_makes_the_wheel_and_nothing_else(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    assert names == package_files() | PROJECT_FILES | {"PKG-INFO", ".gitignore"}


@pytest.mark.parametrize("source", ["the checkout", "the sdist"])
def test_pip_makes_the_same_wheel_as_uv(built: Built, source: str, tmp_path: Path) -> None:
    pip("wheel", "--no-deps", "-w", tmp_path, ROOT if source == "the checkout" else built.sdist)
    assert members(tmp_path / WHEEL) == members(built.wheel)


def test_an_index_would_take_the_metadata(built: Built) -> None:
    told = succeed(TOOLS / "twine", "check", "--strict", built.wheel, built.sdist)
    assert told.count("PASSED") == 2
    metadata = metadata_of(built)
    assert metadata["Version"] == VERSION
    assert (metadata["License-Expression"], metadata["License-File"]) == ("Apache-2.0", "LICENSE")
    assert metadata.get_all("Provides-Extra", []).count("tokens") == 1


def test_the_readme_can_be_shown_as_a_page(tmp_path: Path) -> None:
    page = tmp_path / "readme.html"
    succeed(TOOLS / "python", "-m", "readme_renderer", ROOT / "README.md", "-o", page)
    html = page.read_text(encoding="utf-8")
    assert ">A walk-through<" in html
    assert "<table>" in html


def test_the_changelog_begins_with_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"^## \[(\d.*)\] - \d{4}-\d\d-\d\d$", text, re.MULTILINE)
    assert released[0] == VERSION


@pytest.mark.parametrize("extra", ["", "eval", "hub", "math", "notify", "ray", "report", "tokens"])
@pytest.mark.parametrize("installer", ["pip", "uv"])
def test_the_wheel_does_what_the_readme_shows(
    built: Built, install: Install, installer: str, extra: str
) -> None:
    there = install(installer, built.wheel, extra)
    walk_through(there)
    html = there.run("batchrun", "report", RUN, "--html", "page.html")
    if extra == "report":
        assert html.returncode == 0, html.stderr
        assert "<svg" in (there.folder / "page.html").read_text(encoding="utf-8")
    else:
        assert html.returncode == 2
        assert "pip install" in html.stderr
    if extra == "tokens":
        check_console("cost", "What a run will cost", *there)
    else:
        words = ("--prompt", "{{ question }}", "--model", "gpt-6.1-terra")
        guess = there.run("batchrun", "estimate", "prompts.jsonl", *words)
        assert guess.returncode == 0, guess.stderr
        assert "pip install" in guess.stdout
    told = there.run("batchrun", "run", "prompts.jsonl", *TOLD)
    assert told.returncode == (0 if extra == "notify" else 2), told.stderr
    assert extra == "notify" or "pip install 'batchrun[notify]'" in told.stderr
    on_ray = there.run("env", "RAY_ADDRESS=local", "batchrun", "run", "prompts.jsonl", *ON_RAY)
    assert on_ray.returncode == (0 if extra == "ray" else 2), on_ray.stderr
    assert extra == "ray" or "pip install 'batchrun[ray]'" in on_ray.stderr
    if extra == "ray":
        assert there.run("batchrun", "verify", "on-ray").returncode == 0
    if extra == "hub":  # a data set is on the Hub, which is not asked
        code = "from batchrun.remote.hub import _library; print(_library().__name__)"
        assert there.run("python", "-c", code).stdout.strip() == "huggingface_hub"
    else:
        rows = there.run("batchrun", "run", "hf://datasets/a/b/rows.jsonl", *TOLD[:5])
        assert rows.returncode == 2, rows.stderr
        assert "pip install 'batchrun[hub]'" in rows.stderr
    for kind, needed in (("similarity", "eval"), ("math", "math")):
        scorer = f"[[scorers]]\nkind = '{kind}'\ntarget = '{{{{ row.custom_id }}}} + 1'\n"
        (there.folder / "scorers.toml").write_text(scorer, encoding="utf-8")
        scored = there.run("batchrun", "score", RUN, "scorers.toml")
        assert scored.returncode == (0 if extra == needed else 2), scored.stderr
        assert extra == needed or f"pip install 'batchrun[{needed}]'" in scored.stderr


@pytest.mark.parametrize("installer", ["pip", "uv"])
def test_the_sdist_does_what_the_readme_shows(
    built: Built, install: Install, installer: str
) -> None:
    walk_through(install(installer, built.sdist, ""))


def walk_through(there: Installed) -> None:
    where = there.run("python", "-c", "import batchrun; print(batchrun.__file__)").stdout
    assert Path(where).is_relative_to(there.folder.parent / "env"), where
    assert there.run("batchrun", "--version").stdout.split()[-1] == VERSION
    prompts = block("README", "A walk-through", "json")
    (there.folder / "prompts.jsonl").write_text(prompts, encoding="utf-8")
    check_console("README", "A walk-through", *there)
