"""The real command line, the real simulator, real sockets: what the end-to-end tests share.

Every process has a time limit and ends with its test. Run directories are relative to `tmp_path`,
where the commands run.
"""

import fcntl
import json
import os
import pty
import struct
import subprocess
import termios
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import duckdb
import pytest

import batchrun as library
from tests.processes import COMMAND, Forked, ForkServer, read_screen
from tests.waiting import HANG_S


@pytest.fixture(autouse=True)
def _finished_means_that_no_row_remains(tmp_path: Path) -> Iterator[None]:
    """Whatever a test is about, no run directory that it leaves may say what is not so."""
    yield
    for path in tmp_path.glob("**/run.json"):
        with suppress(ValueError):
            record = json.loads(path.read_bytes())
            if record.get("state") == "finished":
                assert record["totals"]["rows"] == record["rows"], path


@pytest.fixture
def processes() -> "Iterator[list[subprocess.Popen[str] | Forked]]":
    """Whatever a test starts; what still runs at its end is killed."""
    started: list[subprocess.Popen[str] | Forked] = []
    yield started
    for process in started:
        process.kill()
        process.wait(HANG_S)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()
        if isinstance(process, Forked):
            process.close()


_SILENT = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
_IS_HEARD = {(): True, tuple(sorted(_SILENT.items())): False}  # by what is asked of its streams
_BY_PYTHON = ("PYTHON", "LANG", "LC_")  # variables that are read as the interpreter starts


@pytest.fixture
def begin(
    tmp_path: Path,
    environment: dict[str, str],
    processes: "list[subprocess.Popen[str] | Forked]",
    fork_server: ForkServer,
) -> Callable[..., Any]:
    """Starts `batchrun ...` in `tmp_path`, and does not wait for it; in a fork, where that is all.

    `command`: another one than that.
    """

    def start(
        *words: object,
        env: dict[str, str] | None = None,
        before: tuple[str, ...] = (),
        command: Sequence[str] | None = None,
        **options: Any,
    ) -> subprocess.Popen[str] | Forked:
        variables = {**environment, **(env or {})}
        is_heard = _IS_HEARD.get(tuple(sorted(options.items())))
        is_plain = not (before or command or any(name.startswith(_BY_PYTHON) for name in env or ()))
        if is_plain and is_heard is not None:
            fork = fork_server.start(tmp_path, variables, *words, is_heard=is_heard)
            processes.append(fork)
            return fork
        settings = {
            "cwd": tmp_path,
            "env": variables,
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
            **options,
        }
        process = subprocess.Popen([*before, *(command or COMMAND), *map(str, words)], **settings)
        processes.append(process)
        return process

    return start


@pytest.fixture
def simulator(begin: Callable[..., subprocess.Popen[str]]) -> Callable[..., str]:
    """Starts `batchrun simulate`, answering at once unless told otherwise; its base URL."""

    def start(*options: object, env: dict[str, str] | None = None) -> str:
        words = [str(option) for option in options]
        for option, value in (("--port", "0"), ("--latency", "0")):
            if option not in words:
                words += [option, value]
        process = begin("simulate", *words, env=env)
        assert process.stdout is not None
        line: str = process.stdout.readline().strip()
        if not line:
            raise AssertionError(process.communicate(timeout=HANG_S)[1])
        return line

    return start


@pytest.fixture(scope="session")
def stats() -> Callable[..., dict[str, Any]]:
    """What `GET /stats` of a simulator answers; `by="body"` for its table of bodies."""
    # Made once: since Python 3.12, making it reads all certificates, which takes up to 0.1 s.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def fetch(base_url: str, by: str = "") -> dict[str, Any]:
        address = base_url.removesuffix("/v1") + "/stats" + (f"?by={by}" if by else "")
        with opener.open(address, timeout=HANG_S) as answer:
            counts: dict[str, Any] = json.load(answer)
            return counts

    return fetch


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    """Writes JSON Lines into `tmp_path`; the name of the file."""

    def write(rows: Iterable[dict[str, Any]], name: str = "prompts.jsonl") -> Path:
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (tmp_path / name).write_text("".join(lines), encoding="utf-8")
        return Path(name)

    return write


@pytest.fixture
def write_job(tmp_path: Path) -> Callable[..., str]:
    """Writes a job file into `tmp_path`, with an address for BASE_URL; the name of the file."""

    def write(text: str, base_url: str = "") -> str:
        (tmp_path / "job.toml").write_text(text.replace("BASE_URL", base_url), encoding="utf-8")
        return "job.toml"

    return write


@pytest.fixture(scope="session")
def questions() -> Callable[..., list[dict[str, Any]]]:
    """Rows of a made-up prompt set: a question each, and columns to carry."""

    def make(count: int, first: int = 0) -> list[dict[str, Any]]:
        return [
            {
                "question": f"A shelf has {number} books and {number % 7} vases: how many things?",
                "answer": f"#### {number + number % 7}",
                "level": number % 5,
            }
            for number in range(first, first + count)
        ]

    return make


@pytest.fixture
def query(tmp_path: Path) -> Callable[..., list[tuple[Any, ...]]]:
    """What DuckDB answers; `?` in the SQL is the glob of a table's parts."""

    def ask(sql: str, run: object = "run", table: str = "responses") -> list[tuple[Any, ...]]:
        with duckdb.connect() as connection:
            return connection.execute(sql, [f"{tmp_path / str(run)}/{table}/*.parquet"]).fetchall()

    return ask


@pytest.fixture
def totals(query: Callable[..., list[tuple[Any, ...]]]) -> Callable[..., tuple[Any, ...]]:
    """Rows, different rows, rows that are ok."""

    def count(run: object = "run") -> tuple[Any, ...]:
        sql = "SELECT count(*), count(DISTINCT row), count(*) FILTER (ok) FROM read_parquet(?)"
        return query(sql, run)[0]

    return count


@pytest.fixture
def on_terminal(begin: Callable[..., subprocess.Popen[str]]) -> Callable[..., str]:
    """All that `batchrun ...` writes to a terminal of so many columns; it must end with `code`."""

    def watch(*words: object, code: int, columns: int | None = None) -> str:
        screen, terminal = pty.openpty()
        if columns is not None:
            fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        process = begin(
            *words,
            env={"TERM": "xterm-256color"},
            stdin=terminal,
            stdout=subprocess.DEVNULL,
            stderr=terminal,
        )
        os.close(terminal)
        shown = read_screen(screen)
        assert process.wait(HANG_S) == code
        return shown

    return watch


@pytest.fixture
def run_numbers(tmp_path: Path) -> Callable[..., Any]:
    """Runs so many rows, each a number, by the library against a server with a `base_url`.

    More settings as keywords, `__` for a dot.
    """

    async def run(server: Any, rows: int, resend: Any = None, **settings: Any) -> Any:
        prompts = tmp_path / "prompts.jsonl"
        prompts.write_text("".join(f'{{"n": "{row}"}}\n' for row in range(rows)))
        job = library.load_job(
            prompts,
            {
                "request.model": "m",
                "request.input": "{{ n }}",
                "endpoint.base_url": server.base_url,
                "output.path": str(tmp_path / "run"),
                **{name.replace("__", "."): value for name, value in settings.items()},
            },
        )
        return await library.run_async(job, resend=resend)

    return run
